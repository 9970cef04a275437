// The requests of the engine socket and their answers (docs/protocols.md §3), decoded strictly.
//
// Pure: text in, values out. An error names the field.

#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "agent/engine/cache_use.h"
#include "agent/engine/command.h"
#include "agent/startup/machine.h"
#include "common/json.h"
#include "common/manifest.h"

namespace rouse::agent {

inline constexpr std::string_view kEngineProtocol = "rouse-engine";
inline constexpr int kEngineVersion = 1;

inline constexpr std::int64_t kMaxArenaBytes = INT64_C(1) << 44;  ///< 16 TiB; memory ends earlier.
inline constexpr std::int64_t kMaxManifestBytes = 64 << 20;
inline constexpr std::int64_t kMaxAwaitMs = 3'600'000;
inline constexpr std::size_t kMaxStreamReason = 4096;
inline constexpr std::size_t kMaxSpawned = 4096;  ///< 1024 characters of any kind.
inline constexpr std::size_t kMaxGpuName = 64;    ///< "GPU-" and 36 characters, as of 2026.

struct HelloRequest {
  std::int64_t pid = 0;
  std::uint32_t rank = 0;
  std::uint32_t world_size = 1;
  /// How many models each worker loads, one after the other: 2 with one that drafts tokens. Each
  /// has as many ranks, the served one's first.
  std::uint32_t models = 1;
  std::string engine;
  std::string engine_version;
  /// The UUID of the GPU that the rank computes with ("GPU-6f0c..."); empty: none, or an engine
  /// that cannot take slabs of GPU memory.
  std::string gpu;
  /// Why the rank's process was spawned although it was to be forked; empty: it was not.
  std::string spawned;
  Identity identity;

  /// How many ranks load what this one loads.
  std::uint32_t ranks_of_model() const { return world_size / models; }
  /// Which model that is: 0, the served one, or 1.
  std::uint32_t model() const { return rank / ranks_of_model(); }
};
struct PhaseRequest {
  event::EnginePhase phase = event::EnginePhase::kEngineImported;
  std::int64_t at_us = 0;
};
struct AwaitWeightsRequest {
  std::uint32_t rank = 0;
  std::int64_t timeout_ms = 0;
};
struct CreateArenaRequest {
  std::uint32_t rank = 0;
  std::uint64_t bytes = 0;
};
struct GetSlabsRequest {
  std::uint32_t rank = 0;
  std::size_t first = 0;
  std::size_t count = 0;
};
struct PublishRequest {
  std::uint32_t rank = 0;
  std::uint64_t manifest_bytes = 0;
  bool placeholders = false;  ///< No weights, only what stands for them until a wake.
};
/// A file of the checkpoint as the engine sees it.
struct CheckpointFile {
  std::string name;
  std::uint64_t bytes = 0;

  auto operator<=>(const CheckpointFile&) const = default;
};
struct OpenStreamRequest {
  std::uint32_t rank = 0;
  std::string folder;
  std::vector<CheckpointFile> files;
  std::int64_t timeout_ms = 0;
};
struct NextBatchRequest {
  std::uint32_t rank = 0;
  std::size_t batch = 0;
  std::size_t released = 0;  ///< The engine uses none of the first so many batches any more.
  std::int64_t timeout_ms = 0;
};
struct CloseStreamRequest {
  std::uint32_t rank = 0;
  std::string reason;  ///< Why the engine loads by itself instead; empty if it does not.
};
/// Nothing of the arena is mapped by the rank's engine any more.
struct ReleaseArenaRequest {
  std::uint32_t rank = 0;
};
/// The next arena of a rank that has given its own up.
struct AwaitArenaRequest {
  std::uint32_t rank = 0;
  std::int64_t timeout_ms = 0;
};
/// Before Hello: how much of this GPU's memory the agent holds for the pod's engine.
struct HeldMemoryRequest {
  std::string gpu;  ///< UUID.
};
using EngineRequest =
    std::variant<HelloRequest, PhaseRequest, AwaitWeightsRequest, CreateArenaRequest,
                 GetSlabsRequest, PublishRequest, OpenStreamRequest, NextBatchRequest,
                 CloseStreamRequest, ReleaseArenaRequest, AwaitArenaRequest, AttachRequest,
                 AwaitCommandRequest, CommandDoneRequest, HeldMemoryRequest, CacheUseRequest>;

/// Where an engine's weights come from; kNowhere: it begins with placeholders for them.
enum class WeightsFrom { kPeer, kStorage, kNowhere };
inline constexpr json::EnumName<WeightsFrom> kWeightsFrom[] = {{WeightsFrom::kPeer, "Peer"},
                                                               {WeightsFrom::kStorage, "Storage"},
                                                               {WeightsFrom::kNowhere, "Nowhere"}};

/// How an arena is cut; the slabs' sizes add up to its own.
struct ArenaShape {
  std::uint64_t arena_bytes = 0;
  std::vector<std::uint64_t> slab_bytes;
  std::string gpu;  ///< The UUID of the GPU whose memory the slabs are; empty: the host's.
};

/// A checkpoint that the agent reads for the engine (docs/protocols.md §3).
struct StreamShape {
  std::size_t slots = 0;
  std::uint64_t slot_bytes = 0;
  std::size_t batches = 0;
  std::size_t tensors = 0;
  std::uint64_t bytes = 0;          ///< Of all tensors.
  std::vector<std::string> dtypes;  ///< That occur, as in the files.
};
/// Bytes of one tensor, [begin, begin + bytes) of it, at `at` in the slot.
struct StreamedPiece {
  std::string name;
  std::string dtype;
  std::vector<std::uint64_t> shape;
  std::uint64_t begin = 0;
  std::uint64_t bytes = 0;
  std::uint64_t at = 0;
};
struct StreamedBatch {
  std::size_t batch = 0;
  std::size_t slot = 0;
  std::vector<StreamedPiece> pieces;  ///< None: all has come, and was right.
};

/// "Hello", "Phase", ... as on the wire.
std::string_view TypeName(const EngineRequest& request);

/// Decodes one message that came with `fds` descriptors. InvalidArgument for anything malformed and
/// for a wrong number of descriptors; FailedPrecondition for another protocol or version.
Result<EngineRequest> DecodeEngineRequest(std::string_view text, std::size_t fds);

json::Json WelcomeReply(WeightsFrom from, const std::string& reason);
json::Json OkReply();
json::Json ErrorReply(const Status& status);
json::Json WeightsReply(const ArenaShape& shape, std::uint64_t manifest_bytes);
json::Json ArenaReply(const ArenaShape& shape);
json::Json HeldReply(std::uint64_t bytes);
json::Json SlabsReply(std::size_t first, std::size_t count);
json::Json StreamReply(const StreamShape& shape);
json::Json BatchReply(const StreamedBatch& batch);
/// What was asked for is on its way: ask again.
json::Json PendingReply();

}  // namespace rouse::agent
