// What operator and agents say to each other over HTTP (docs/protocols.md §1, §2).
//
// Each message has ToJson and a strict ...FromJson. Protocol and version are checked first, so that
// two programs that do not fit refuse each other with both versions in the message.

#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/json.h"
#include "common/manifest.h"
#include "common/node_facts.h"
#include "common/timeline.h"

namespace rouse {

inline constexpr std::string_view kAgentProtocol = "rouse-agent";
inline constexpr int kAgentVersion = 1;
inline constexpr std::string_view kWeightsProtocol = "rouse-weights";
inline constexpr int kWeightsVersion = 1;
inline constexpr std::string_view kFilesProtocol = "rouse-files";
inline constexpr int kFilesVersion = 1;

inline constexpr std::uint16_t kOperatorPort = 7480;
inline constexpr std::uint16_t kAgentPort = 7410;     ///< Probes and metrics.
inline constexpr std::uint16_t kAgentTlsPort = 7411;  ///< The operator and peers.

/// FailedPrecondition, naming both sides' versions, unless the document speaks protocol/version.
Status CheckProtocol(json::Reader& in, std::string_view protocol, int version);

enum class AgentState {
  kStarting,   ///< The process runs.
  kHydrating,  ///< Files the engine needs before it starts are being put in place.
  kPulling,    ///< Weights are on their way, the engine may not start yet.
  kReady,      ///< The engine may start; weights may still be on their way.
  kLoading,    ///< The engine takes its weights.
  kWarming,    ///< The engine has its weights and is not healthy yet.
  kServing,    ///< The engine has given its first token.
  kSleeping,   ///< Weights and KV memory are being given back.
  kAsleep,     ///< A guard: it holds neither, and can be woken.
  kWaking,     ///< Both are on their way back.
  kFailed,     ///< This instance cannot come up, or not wake; the message says why.
};
inline constexpr json::EnumName<AgentState> kAgentStates[] = {
    {AgentState::kStarting, "Starting"}, {AgentState::kHydrating, "Hydrating"},
    {AgentState::kPulling, "Pulling"},   {AgentState::kReady, "Ready"},
    {AgentState::kLoading, "Loading"},   {AgentState::kWarming, "Warming"},
    {AgentState::kServing, "Serving"},   {AgentState::kSleeping, "Sleeping"},
    {AgentState::kAsleep, "Asleep"},     {AgentState::kWaking, "Waking"},
    {AgentState::kFailed, "Failed"}};
std::string_view ToString(AgentState state);

/// The weights an agent holds.
struct WeightsReport {
  WeightForm form = WeightForm::kLoaded;
  std::string identity;     ///< IdentityDigest of rank 0.
  std::uint64_t bytes = 0;  ///< Over all ranks.
  std::uint32_t ranks = 0;
  bool servable = false;  ///< Every rank is published and digested: peers may pull.
  bool arriving = false;  ///< Still being pulled; peers may pull what has been verified.

  bool operator==(const WeightsReport&) const = default;
};

/// Weight bytes by where they came from.
struct BytesBySource {
  std::uint64_t peer = 0;
  std::uint64_t storage = 0;

  bool operator==(const BytesBySource&) const = default;
};

/// Requests that an engine has, over all its cores.
struct EngineLoad {
  std::uint64_t running = 0;
  std::uint64_t waiting = 0;

  std::uint64_t total() const { return running + waiting; }
  bool operator==(const EngineLoad&) const = default;
};
/// More than any engine can have; what says more is refused.
inline constexpr std::int64_t kMaxRequests = 1'000'000'000;

json::Json ToJson(const EngineLoad& load);
Result<EngineLoad> EngineLoadFromJson(const json::Json& value, const std::string& path);

struct AgentReport {
  std::string pod_namespace;
  std::string pod;
  std::string pod_uid;
  std::string node;
  std::string address;  ///< "https://10.244.0.7:7411"
  AgentState state = AgentState::kStarting;
  std::string message;
  std::optional<WeightsReport> weights;
  BytesBySource bytes_by_source;
  std::string transport;
  /// Why that was TCP on a node with RDMA, and what may help; empty when it was not.
  std::string transport_fallback;
  /// Where compile caches came from, or why the engine started without; empty: not known yet, or
  /// they are not reused.
  std::string state_origin;
  /// Which lookup found nothing although caches had been installed, and why; empty: none.
  std::string state_miss;
  std::optional<Timeline> timeline;
  std::optional<EngineLoad> load;  ///< Of an engine that serves and tells it.
  std::optional<NodeFacts> node_facts;
  /// Assignment::keepers_digest of the answer whose keepers it has; empty: it has none.
  std::string keepers_digest;

  bool operator==(const AgentReport&) const = default;
};

/// How far a peer's node is from one's own.
enum class Distance { kNode, kRack, kZone, kFarther };
inline constexpr json::EnumName<Distance> kDistances[] = {{Distance::kNode, "Node"},
                                                          {Distance::kRack, "Rack"},
                                                          {Distance::kZone, "Zone"},
                                                          {Distance::kFarther, "Farther"}};

struct Peer {
  std::string pod;
  std::string node;
  std::string address;
  bool partial = false;  ///< It is still pulling, and hands on what it has verified.
  Distance distance = Distance::kFarther;

  bool operator==(const Peer&) const = default;
};

json::Json PeersToJson(const std::vector<Peer>& peers);
/// A list of peers that is a member of `in`.
std::vector<Peer> ReadPeers(json::Reader& in, std::string_view key);

/// Another instance of the same launch, whatever it is at.
struct Sibling {
  std::string pod;
  std::string address;  ///< Empty while its agent has not reported.
  std::int64_t decided_at_us = 0;

  bool operator==(const Sibling&) const = default;
};

/// An agent of the namespace, of any ModelService, that keeps compile caches: for its own instance,
/// and copies for others.
struct Keeper {
  std::string pod;
  std::string node;
  std::string address;
  bool leaving = false;  ///< It goes soon: it still gives what it has, and is given nothing more.

  bool operator==(const Keeper&) const = default;
};
/// So many are named at most.
inline constexpr std::size_t kMaxKeepers = 256;
inline constexpr std::size_t kMaxKeepersDigest = 64;
/// What spec.fastStart.state.copies may be at most.
inline constexpr int kMaxStateCopies = 16;

/// The operator's answer to a report.
struct Assignment {
  StartPath path = StartPath::kStorage;
  std::vector<Peer> peers;  ///< Best first.
  std::int64_t report_after_ms = 2000;
  /// Whether other instances have weights, or may come to: else waiting for a peer is of no use.
  bool expecting = true;
  /// Who may have compile caches, or come to have them; nearest first.
  std::vector<Sibling> siblings;
  /// All that keep compile caches in this namespace, this agent among them. Left out for whoever
  /// has them already: most of an answer where there are many.
  std::vector<Keeper> keepers;
  /// Another one for any other list; empty: the list is in the answer, or there is none.
  std::string keepers_digest;
  /// How many of them are to keep a copy of this instance's caches; 0: none, and none is asked.
  int state_copies = 0;

  bool operator==(const Assignment&) const = default;
};

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

json::Json ToJson(const WeightsReport& weights);
json::Json ToJson(const BytesBySource& bytes);
json::Json ToJson(const AgentReport& report);
json::Json ToJson(const Assignment& assignment);
json::Json ToJson(const OpenRequest& request);
json::Json ToJson(const OpenResponse& response);
json::Json ToJson(const LeaseRequest& request);
json::Json ToJson(const StageRequest& request);
/// Of a StageRequest.
json::Json StagedToJson(const RemoteSlab& slab);
json::Json ToJson(const ModelFiles& files);

Result<WeightsReport> WeightsReportFromJson(const json::Json& value, const std::string& path);
Result<BytesBySource> BytesBySourceFromJson(const json::Json& value, const std::string& path);
Result<AgentReport> AgentReportFromJson(const json::Json& value);
Result<Assignment> AssignmentFromJson(const json::Json& value);
Result<OpenRequest> OpenRequestFromJson(const json::Json& value);
/// Also checks that each rank's slabs add up to its arena.
Result<OpenResponse> OpenResponseFromJson(const json::Json& value);
Result<LeaseRequest> LeaseRequestFromJson(const json::Json& value);
Result<StageRequest> StageRequestFromJson(const json::Json& value);
Result<RemoteSlab> StagedFromJson(const json::Json& value);
/// Also refuses paths that could leave the model folder, duplicates, and sizes over the bounds.
Result<ModelFiles> ModelFilesFromJson(const json::Json& value);

}  // namespace rouse
