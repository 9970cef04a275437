// What agents ask each other for over HTTP (docs/protocols.md §2): weights, and a model's small
// files. Each message has ToJson and a strict ...FromJson.

#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/json.h"
#include "common/manifest.h"

namespace rouse {

inline constexpr std::string_view kWeightsProtocol = "rouse-weights";
inline constexpr int kWeightsVersion = 1;
inline constexpr std::string_view kFilesProtocol = "rouse-files";
inline constexpr int kFilesVersion = 1;

struct OpenRequest {
  std::string launch_identity;
  std::string requester;  ///< "namespace/pod", for the source's log.
  bool partial = false;   ///< The requester can use weights that are still arriving.

  bool operator==(const OpenRequest&) const = default;
};

/// One slab of a peer: registered, or in GPU memory that nobody can read by address (none, and no
/// key).
struct RemoteSlab {
  std::uint64_t address = 0;  ///< In the peer's address space.
  std::uint64_t bytes = 0;
  std::string rkey;  ///< Packed remote key, raw bytes (base64 on the wire).

  bool operator==(const RemoteSlab&) const = default;
};

struct RemoteRank {
  WeightManifest manifest;  ///< With digests; manifest.rank is the rank.
  std::vector<RemoteSlab> slabs;
  /// Of a rank that is still arriving: a bitmap in registered memory, 64-bit words in the order of
  /// the machine. Bit i of word i / 64 is set once chunk i may be read.
  std::optional<RemoteSlab> availability;
  /// Of a rank in GPU memory: the most bytes that one StageRequest may ask for; 0: none, only its
  /// node can read it.
  std::uint64_t stage_bytes = 0;

  bool operator==(const RemoteRank&) const = default;
};

/// Buffers that one lease has at the source: while one is read, the next is filled.
inline constexpr std::uint32_t kStageBuffers = 2;

/// Body of /v1/weights/stage: copy these bytes of a rank in GPU memory into a buffer of registered
/// host memory. The answer is the RemoteSlab that holds them, until the same buffer is asked for
/// again or the lease ends.
struct StageRequest {
  std::string lease;
  std::uint32_t rank = 0;
  std::uint32_t buffer = 0;  ///< Below kStageBuffers.
  std::uint64_t offset = 0;  ///< In the rank's arena.
  std::uint64_t bytes = 0;   ///< 1 to RemoteRank::stage_bytes.

  bool operator==(const StageRequest&) const = default;
};

/// A lease is renewed three times within its duration: a shorter one would end, or keep both agents
/// busy, where the network or a machine is slow for a moment.
inline constexpr std::int64_t kMinLeaseMs = 1'000;

/// A source's answer to OpenRequest: all that is needed to read its arenas one-sidedly.
struct OpenResponse {
  std::string lease;
  std::int64_t lease_ms = 0;   ///< At least kMinLeaseMs.
  std::string worker_address;  ///< UCX worker address, raw bytes (base64 on the wire).
  std::string node_socket;     ///< Its name in the node's folder; empty: none.
  std::vector<RemoteRank> ranks;

  bool operator==(const OpenResponse&) const = default;
};

/// Body of /v1/weights/renew and /v1/weights/close.
struct LeaseRequest {
  std::string lease;

  bool operator==(const LeaseRequest&) const = default;
};

/// One of a model's small files.
struct ModelFile {
  std::string path;  ///< Relative to the model folder.
  std::uint64_t bytes = 0;
  std::uint32_t mode = 0644;
  std::string sha256;

  bool operator==(const ModelFile&) const = default;
};

inline constexpr std::uint64_t kMaxModelFileBytes = 64u << 20;
inline constexpr std::uint64_t kMaxModelFilesBytes = 512u << 20;
inline constexpr std::size_t kMaxModelFiles = 1024;

struct ModelFiles {
  std::vector<ModelFile> files;

  bool operator==(const ModelFiles&) const = default;
};

json::Json ToJson(const OpenRequest& request);
json::Json ToJson(const OpenResponse& response);
json::Json ToJson(const LeaseRequest& request);
json::Json ToJson(const StageRequest& request);
/// Of a StageRequest.
json::Json StagedToJson(const RemoteSlab& slab);
json::Json ToJson(const ModelFiles& files);

Result<OpenRequest> OpenRequestFromJson(const json::Json& value);
/// Also checks that each rank's slabs add up to its arena.
Result<OpenResponse> OpenResponseFromJson(const json::Json& value);
Result<LeaseRequest> LeaseRequestFromJson(const json::Json& value);
Result<StageRequest> StageRequestFromJson(const json::Json& value);
Result<RemoteSlab> StagedFromJson(const json::Json& value);
/// Also refuses paths that could leave the model folder, duplicates, and sizes over the bounds.
Result<ModelFiles> ModelFilesFromJson(const json::Json& value);

}  // namespace rouse
