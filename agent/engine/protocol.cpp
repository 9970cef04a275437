#include "agent/engine/protocol.h"

#include "agent/socket/seqpacket.h"
#include "common/protocol.h"

namespace rouse::agent {
namespace {

constexpr std::size_t kMaxErrorText = 8192;
constexpr std::size_t kMaxCheckpointFiles = 65'536;
constexpr std::int64_t kMaxBatches = 1 << 30;

enum class Type {
  kHello,
  kPhase,
  kAwaitWeights,
  kCreateArena,
  kGetSlabs,
  kPublish,
  kOpenStream,
  kNextBatch,
  kCloseStream,
  kReleaseArena,
  kAwaitArena,
  kAttach,
  kAwaitCommand,
  kCommandDone,
  kHeldMemory,
  kCacheUse
};
constexpr json::EnumName<Type> kTypes[] = {{Type::kHello, "Hello"},
                                           {Type::kPhase, "Phase"},
                                           {Type::kAwaitWeights, "AwaitWeights"},
                                           {Type::kCreateArena, "CreateArena"},
                                           {Type::kGetSlabs, "GetSlabs"},
                                           {Type::kPublish, "Publish"},
                                           {Type::kOpenStream, "OpenStream"},
                                           {Type::kNextBatch, "NextBatch"},
                                           {Type::kCloseStream, "CloseStream"},
                                           {Type::kReleaseArena, "ReleaseArena"},
                                           {Type::kAwaitArena, "AwaitArena"},
                                           {Type::kAttach, "Attach"},
                                           {Type::kAwaitCommand, "AwaitCommand"},
                                           {Type::kCommandDone, "CommandDone"},
                                           {Type::kHeldMemory, "HeldMemory"},
                                           {Type::kCacheUse, "CacheUse"}};

std::uint32_t Rank(json::Reader& in) {
  return static_cast<std::uint32_t>(in.Int("rank", 0, kMaxWorldSize - 1));
}

std::string Gpu(json::Reader& in) {
  std::string gpu = in.String("gpu");
  if (gpu.size() > kMaxGpuName) {
    in.Fail("gpu", "has more than " + std::to_string(kMaxGpuName) + " bytes");
  }
  return gpu;
}

Result<EngineRequest> Hello(json::Reader& in) {
  ROUSE_RETURN_IF_ERROR(CheckProtocol(in, kEngineProtocol, kEngineVersion));
  HelloRequest hello;
  hello.pid = in.Int("pid");
  hello.rank = Rank(in);
  hello.world_size = static_cast<std::uint32_t>(in.Int("worldSize", 1, kMaxWorldSize));
  if (in.Has("models")) hello.models = static_cast<std::uint32_t>(in.Int("models", 1, 2));
  hello.engine = in.String("engine");
  hello.engine_version = in.String("engineVersion");
  if (in.Has("gpu")) hello.gpu = Gpu(in);
  if (in.Has("spawned")) hello.spawned = in.String("spawned");
  if (hello.spawned.size() > kMaxSpawned) {
    in.Fail("spawned", "has more than " + std::to_string(kMaxSpawned) + " bytes");
  }
  const json::Json& identity = in.Object("identity");
  ROUSE_RETURN_IF_ERROR(in.status());
  if (hello.rank >= hello.world_size) {
    return InvalidArgument("rank: " + std::to_string(hello.rank) + " is not below worldSize " +
                           std::to_string(hello.world_size));
  }
  if (hello.world_size % hello.models != 0) {
    return InvalidArgument("models: " + std::to_string(hello.world_size) + " ranks of " +
                           std::to_string(hello.models) + " models, expected as many of each");
  }
  ROUSE_ASSIGN_OR_RETURN(hello.identity, IdentityFromJson(identity, "identity"));
  return EngineRequest(std::move(hello));
}

CheckpointFile ReadFile(json::Reader& in) {
  return {.name = in.String("name"), .bytes = static_cast<std::uint64_t>(in.Int("bytes"))};
}

OpenStreamRequest OpenStream(json::Reader& in) {
  OpenStreamRequest open{.rank = Rank(in), .folder = in.String("folder")};
  open.files = in.Objects("files", kMaxCheckpointFiles, ReadFile);
  if (open.files.empty()) in.Fail("files", "names no file");
  open.timeout_ms = in.Int("timeoutMs", 0, kMaxAwaitMs);
  return open;
}

Result<EngineRequest> Decode(Type type, json::Reader& in) {
  EngineRequest request;
  switch (type) {
    case Type::kHello:
      return Hello(in);
    case Type::kPhase:
      request = PhaseRequest{.phase = in.Enum<event::EnginePhase>("name", kEnginePhases),
                             .at_us = in.Int("atUs")};
      break;
    case Type::kAwaitWeights:
      request =
          AwaitWeightsRequest{.rank = Rank(in), .timeout_ms = in.Int("timeoutMs", 0, kMaxAwaitMs)};
      break;
    case Type::kCreateArena:
      request = CreateArenaRequest{
          .rank = Rank(in),
          .bytes = static_cast<std::uint64_t>(in.Int("bytes", 1, kMaxArenaBytes))};
      break;
    case Type::kGetSlabs:
      request = GetSlabsRequest{.rank = Rank(in),
                                .first = static_cast<std::size_t>(in.Int("first", 0, 1 << 20)),
                                .count = static_cast<std::size_t>(
                                    in.Int("count", 1, static_cast<std::int64_t>(kMaxMessageFds)))};
      break;
    case Type::kPublish:
      request = PublishRequest{.rank = Rank(in),
                               .manifest_bytes = static_cast<std::uint64_t>(
                                   in.Int("manifestBytes", 1, kMaxManifestBytes)),
                               .placeholders = in.BoolOr("placeholders", false)};
      break;
    case Type::kOpenStream:
      request = OpenStream(in);
      break;
    case Type::kNextBatch:
      request =
          NextBatchRequest{.rank = Rank(in),
                           .batch = static_cast<std::size_t>(in.Int("batch", 0, kMaxBatches)),
                           .released = static_cast<std::size_t>(in.Int("released", 0, kMaxBatches)),
                           .timeout_ms = in.Int("timeoutMs", 0, kMaxAwaitMs)};
      break;
    case Type::kCloseStream:
      request = CloseStreamRequest{.rank = Rank(in),
                                   .reason = in.String("reason").substr(0, kMaxStreamReason)};
      break;
    case Type::kReleaseArena:
      in.Only({"type", "rank"});
      request = ReleaseArenaRequest{.rank = Rank(in)};
      break;
    case Type::kAwaitArena:
      in.Only({"type", "rank", "timeoutMs"});
      request =
          AwaitArenaRequest{.rank = Rank(in), .timeout_ms = in.Int("timeoutMs", 0, kMaxAwaitMs)};
      break;
    case Type::kAttach: {
      ROUSE_ASSIGN_OR_RETURN(request, ReadAttach(in));
      break;
    }
    case Type::kAwaitCommand:
      request = ReadAwaitCommand(in);
      break;
    case Type::kCommandDone:
      request = ReadCommandDone(in);
      break;
    case Type::kHeldMemory:
      ROUSE_RETURN_IF_ERROR(CheckProtocol(in, kEngineProtocol, kEngineVersion));
      in.Only({"type", "protocol", "version", "gpu"});
      request = HeldMemoryRequest{.gpu = Gpu(in)};
      break;
    case Type::kCacheUse: {
      ROUSE_ASSIGN_OR_RETURN(request, ReadCacheUse(in));
      break;
    }
  }
  ROUSE_RETURN_IF_ERROR(in.status());
  return request;
}

}  // namespace

std::string_view TypeName(const EngineRequest& request) {
  return kTypes[request.index()].name;
}

Result<EngineRequest> DecodeEngineRequest(std::string_view text, std::size_t fds) {
  ROUSE_ASSIGN_OR_RETURN(const json::Json document,
                         json::Parse(text, "engine request", kMaxMessageBytes));
  json::Reader in(document, "");
  const Type type = in.Enum<Type>("type", kTypes);
  ROUSE_RETURN_IF_ERROR(in.status());
  const std::size_t expected = type == Type::kPublish ? 1 : 0;
  if (fds != expected) {
    return InvalidArgument("engine request " + std::string(json::NameOf<Type>(type, kTypes)) +
                           " came with " + std::to_string(fds) + " descriptors, expected " +
                           std::to_string(expected));
  }
  return Decode(type, in);
}

json::Json WelcomeReply(WeightsFrom from, const std::string& reason) {
  return {{"type", "Welcome"},
          {"protocol", kEngineProtocol},
          {"version", kEngineVersion},
          {"source", json::NameOf<WeightsFrom>(from, kWeightsFrom)},
          {"reason", reason.substr(0, kMaxErrorText)}};
}

json::Json HeldReply(std::uint64_t bytes) {
  return {{"type", "Held"}, {"bytes", bytes}};
}

json::Json OkReply() {
  return {{"type", "Ok"}};
}

json::Json ErrorReply(const Status& status) {
  return {{"type", "Error"},
          {"code", ToString(status.code())},
          {"message", status.message().substr(0, kMaxErrorText)}};
}

namespace {

json::Json ShapeReply(std::string_view type, const ArenaShape& shape) {
  json::Json reply = {
      {"type", type}, {"arenaBytes", shape.arena_bytes}, {"slabBytes", shape.slab_bytes}};
  if (!shape.gpu.empty()) reply["gpu"] = shape.gpu;
  return reply;
}

}  // namespace

json::Json WeightsReply(const ArenaShape& shape, std::uint64_t manifest_bytes) {
  json::Json reply = ShapeReply("Weights", shape);
  reply["manifestBytes"] = manifest_bytes;
  return reply;
}

json::Json ArenaReply(const ArenaShape& shape) {
  return ShapeReply("Arena", shape);
}

json::Json SlabsReply(std::size_t first, std::size_t count) {
  return {{"type", "Slabs"}, {"first", first}, {"count", count}};
}

json::Json StreamReply(const StreamShape& shape) {
  return {{"type", "Stream"},         {"slots", shape.slots},     {"slotBytes", shape.slot_bytes},
          {"batches", shape.batches}, {"tensors", shape.tensors}, {"bytes", shape.bytes},
          {"dtypes", shape.dtypes}};
}

json::Json BatchReply(const StreamedBatch& batch) {
  json::Json pieces = json::Json::array();
  for (const StreamedPiece& piece : batch.pieces) {
    pieces.push_back({{"name", piece.name},
                      {"dtype", piece.dtype},
                      {"shape", piece.shape},
                      {"begin", piece.begin},
                      {"bytes", piece.bytes},
                      {"at", piece.at}});
  }
  return {{"type", "Batch"}, {"batch", batch.batch}, {"slot", batch.slot}, {"pieces", pieces}};
}

json::Json PendingReply() {
  return {{"type", "Pending"}};
}

}  // namespace rouse::agent
