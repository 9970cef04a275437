#include "common/peer_messages.h"

#include <charconv>
#include <set>

#include "common/base64.h"
#include "common/plain_path.h"
#include "common/protocol.h"
#include "common/sha256.h"

namespace rouse {
namespace {

constexpr std::size_t kMaxSlabs = 65536;
constexpr std::size_t kMaxKeyBytes = 64 << 10;
constexpr std::size_t kMaxRequester = 4096;
constexpr std::size_t kMaxFileName = 255;  // Of Linux's file systems.

std::string ReadBase64(json::Reader& in, std::string_view key, std::size_t max_bytes) {
  auto bytes = Base64Decode(in.String(key), in.Path(key));
  in.Take(bytes.status());
  if (!bytes.ok()) return {};
  if (bytes->empty() || bytes->size() > max_bytes) {
    in.Fail(key, "has " + std::to_string(bytes->size()) + " bytes, expected 1 to " +
                     std::to_string(max_bytes));
  }
  return *std::move(bytes);
}

std::string HexAddress(std::uint64_t address) {
  char buffer[17] = {};
  const auto end = std::to_chars(buffer, buffer + 16, address, 16).ptr;
  return "0x" + std::string(buffer, end);
}

std::uint64_t ReadAddress(json::Reader& in, std::string_view key) {
  const std::string text = in.String(key);
  std::uint64_t address = 0;
  const char* const end = text.data() + text.size();
  if (text.size() < 3 || !text.starts_with("0x") ||
      std::from_chars(text.data() + 2, end, address, 16).ptr != end || address == 0) {
    in.Fail(key, "expected a hexadecimal address such as \"0x7f0000000000\"");
  }
  return address;
}

json::Json ToJson(const RemoteSlab& slab) {
  if (slab.rkey.empty()) return {{"bytes", slab.bytes}};
  return {{"address", HexAddress(slab.address)},
          {"bytes", slab.bytes},
          {"rkey", Base64Encode(slab.rkey)}};
}

RemoteSlab ReadSlab(json::Reader& in) {
  RemoteSlab slab{.bytes = static_cast<std::uint64_t>(in.Int("bytes", 1))};
  if (!in.Has("address") && !in.Has("rkey")) return slab;
  slab.address = ReadAddress(in, "address");
  slab.rkey = ReadBase64(in, "rkey", kMaxKeyBytes);
  if (slab.address + slab.bytes < slab.address) in.Fail("bytes", "wraps around");
  return slab;
}

// May be absent, as may null: the rank is complete then.
std::optional<RemoteSlab> ReadAvailability(json::Reader& in, const WeightManifest& manifest) {
  if (!in.Has("availability")) return std::nullopt;
  json::Reader bitmap(in.Object("availability"), in.Path("availability"));
  RemoteSlab slab = ReadSlab(bitmap);
  const std::uint64_t expected = (manifest.chunk_digests.size() + 63) / 64 * 8;
  if (slab.bytes != expected) {
    bitmap.Fail("bytes", "is " + std::to_string(slab.bytes) + ", expected " +
                             std::to_string(expected) + " for " +
                             std::to_string(manifest.chunk_digests.size()) + " chunks");
  }
  in.Take(bitmap.status());
  return slab;
}

RemoteRank ReadRank(json::Reader& in) {
  RemoteRank rank;
  const std::int64_t number = in.Int("rank");
  auto manifest = ManifestFromJson(in.Object("manifest"), in.Path("manifest"));
  in.Take(manifest.status());
  if (!in.status().ok()) return rank;
  rank.manifest = *std::move(manifest);
  if (number != std::int64_t{rank.manifest.rank}) {
    in.Fail("rank", "differs from rank " + std::to_string(rank.manifest.rank) + " of its manifest");
  }
  if (rank.manifest.chunk_digests.empty()) in.Fail("manifest", "carries no digests");
  std::uint64_t total = 0;
  rank.slabs = in.Objects("slabs", kMaxSlabs, [&](json::Reader& entry) {
    RemoteSlab slab = ReadSlab(entry);
    if (__builtin_add_overflow(total, slab.bytes, &total)) entry.Fail("bytes", "adds up too far");
    return slab;
  });
  if (in.status().ok() && total != rank.manifest.arena_bytes) {
    in.Fail("slabs", "add up to " + std::to_string(total) + " bytes, the arena has " +
                         std::to_string(rank.manifest.arena_bytes));
  }
  if (in.status().ok()) rank.availability = ReadAvailability(in, rank.manifest);
  rank.stage_bytes = static_cast<std::uint64_t>(in.IntOr("stageBytes", 0));
  return rank;
}

}  // namespace

json::Json ToJson(const OpenRequest& request) {
  json::Json out = Envelope(kWeightsProtocol, kWeightsVersion);
  out["launchIdentity"] = request.launch_identity;
  out["requester"] = request.requester;
  out["partial"] = request.partial;
  return out;
}

json::Json ToJson(const OpenResponse& response) {
  json::Json out = Envelope(kWeightsProtocol, kWeightsVersion);
  out["lease"] = response.lease;
  out["leaseMs"] = response.lease_ms;
  out["workerAddress"] = Base64Encode(response.worker_address);
  if (!response.node_socket.empty()) out["nodeSocket"] = response.node_socket;
  out["ranks"] = json::Json::array();
  for (const RemoteRank& rank : response.ranks) {
    json::Json slabs = json::Json::array();
    for (const RemoteSlab& slab : rank.slabs) slabs.push_back(ToJson(slab));
    out["ranks"].push_back(
        {{"rank", rank.manifest.rank}, {"manifest", ToJson(rank.manifest)}, {"slabs", slabs}});
    if (rank.availability) out["ranks"].back()["availability"] = ToJson(*rank.availability);
    if (rank.stage_bytes > 0) out["ranks"].back()["stageBytes"] = rank.stage_bytes;
  }
  return out;
}

json::Json ToJson(const LeaseRequest& request) {
  json::Json out = Envelope(kWeightsProtocol, kWeightsVersion);
  out["lease"] = request.lease;
  return out;
}

json::Json ToJson(const StageRequest& request) {
  json::Json out = Envelope(kWeightsProtocol, kWeightsVersion);
  out["lease"] = request.lease;
  out["rank"] = request.rank;
  out["buffer"] = request.buffer;
  out["offset"] = request.offset;
  out["bytes"] = request.bytes;
  return out;
}

json::Json StagedToJson(const RemoteSlab& slab) {
  json::Json out = Envelope(kWeightsProtocol, kWeightsVersion);
  out["slab"] = ToJson(slab);
  return out;
}

json::Json ToJson(const ModelFiles& files) {
  json::Json out = Envelope(kFilesProtocol, kFilesVersion);
  out["files"] = json::Json::array();
  for (const ModelFile& file : files.files) {
    out["files"].push_back(
        {{"path", file.path}, {"bytes", file.bytes}, {"mode", file.mode}, {"sha256", file.sha256}});
  }
  return out;
}

Result<OpenRequest> OpenRequestFromJson(const json::Json& value) {
  json::Reader in(value, "");
  ROUSE_RETURN_IF_ERROR(CheckProtocol(in, kWeightsProtocol, kWeightsVersion));
  OpenRequest request{.launch_identity = in.String("launchIdentity"),
                      .requester = in.String("requester"),
                      .partial = in.BoolOr("partial", false)};
  if (request.requester.size() > kMaxRequester) in.Fail("requester", "is over 4096 bytes");
  ROUSE_RETURN_IF_ERROR(in.status());
  return request;
}

Result<OpenResponse> OpenResponseFromJson(const json::Json& value) {
  json::Reader in(value, "");
  ROUSE_RETURN_IF_ERROR(CheckProtocol(in, kWeightsProtocol, kWeightsVersion));
  OpenResponse response;
  response.lease = in.String("lease");
  response.lease_ms = in.Int("leaseMs", kMinLeaseMs, 3'600'000);
  response.worker_address = ReadBase64(in, "workerAddress", kMaxKeyBytes);
  response.node_socket = in.StringOr("nodeSocket", "");
  std::set<std::uint32_t> seen;
  response.ranks = in.Objects("ranks", kMaxWorldSize, [&](json::Reader& entry) {
    RemoteRank rank = ReadRank(entry);
    if (entry.status().ok() && !seen.insert(rank.manifest.rank).second) {
      entry.Fail("rank", std::to_string(rank.manifest.rank) + " is there twice");
    }
    return rank;
  });
  if (response.ranks.empty()) in.Fail("ranks", "is empty");
  ROUSE_RETURN_IF_ERROR(in.status());
  return response;
}

Result<LeaseRequest> LeaseRequestFromJson(const json::Json& value) {
  json::Reader in(value, "");
  ROUSE_RETURN_IF_ERROR(CheckProtocol(in, kWeightsProtocol, kWeightsVersion));
  LeaseRequest request{.lease = in.String("lease")};
  ROUSE_RETURN_IF_ERROR(in.status());
  return request;
}

Result<StageRequest> StageRequestFromJson(const json::Json& value) {
  json::Reader in(value, "");
  ROUSE_RETURN_IF_ERROR(CheckProtocol(in, kWeightsProtocol, kWeightsVersion));
  StageRequest request{.lease = in.String("lease"),
                       .rank = static_cast<std::uint32_t>(in.Int("rank", 0, kMaxWorldSize - 1)),
                       .buffer = static_cast<std::uint32_t>(in.Int("buffer", 0, kStageBuffers - 1)),
                       .offset = static_cast<std::uint64_t>(in.Int("offset")),
                       .bytes = static_cast<std::uint64_t>(in.Int("bytes", 1))};
  ROUSE_RETURN_IF_ERROR(in.status());
  return request;
}

Result<RemoteSlab> StagedFromJson(const json::Json& value) {
  json::Reader in(value, "");
  ROUSE_RETURN_IF_ERROR(CheckProtocol(in, kWeightsProtocol, kWeightsVersion));
  json::Reader slab(in.Object("slab"), in.Path("slab"));
  RemoteSlab staged = ReadSlab(slab);
  if (slab.status().ok() && staged.rkey.empty()) slab.Fail("rkey", "is missing");
  in.Take(slab.status());
  ROUSE_RETURN_IF_ERROR(in.status());
  return staged;
}

Result<ModelFiles> ModelFilesFromJson(const json::Json& value) {
  json::Reader in(value, "");
  ROUSE_RETURN_IF_ERROR(CheckProtocol(in, kFilesProtocol, kFilesVersion));
  ModelFiles files;
  std::set<std::string> seen;
  std::uint64_t total = 0;
  files.files = in.Objects("files", kMaxModelFiles, [&](json::Reader& entry) {
    ModelFile file{.path = entry.String("path"),
                   .bytes = static_cast<std::uint64_t>(
                       entry.Int("bytes", 0, static_cast<std::int64_t>(kMaxModelFileBytes))),
                   .mode = static_cast<std::uint32_t>(entry.Int("mode", 0, 0777)),
                   .sha256 = entry.String("sha256")};
    total += file.bytes;
    if (!IsPlainPath(file.path, kMaxFileName)) {
      entry.Fail("path", "\"" + file.path + "\" is not a plain relative path");
    } else if (!seen.insert(file.path).second) {
      entry.Fail("path", "\"" + file.path + "\" is there twice");
    } else if (!IsSha256Hex(file.sha256)) {
      entry.Fail("sha256", "expected 64 lower-case hex digits");
    } else if (total > kMaxModelFilesBytes) {
      entry.Fail("bytes", "the files add up to more than 512 MiB");
    }
    return file;
  });
  ROUSE_RETURN_IF_ERROR(in.status());
  return files;
}

}  // namespace rouse
