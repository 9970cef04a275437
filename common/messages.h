// What operator and agents say to each other over HTTP (docs/protocols.md §1). Each message has
// ToJson and a strict ...FromJson.

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

inline constexpr std::uint16_t kOperatorPort = 7480;
inline constexpr std::uint16_t kAgentPort = 7410;     ///< Probes and metrics.
inline constexpr std::uint16_t kAgentTlsPort = 7411;  ///< The operator and peers.

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

json::Json ToJson(const WeightsReport& weights);
json::Json ToJson(const BytesBySource& bytes);
json::Json ToJson(const AgentReport& report);
json::Json ToJson(const Assignment& assignment);

Result<WeightsReport> WeightsReportFromJson(const json::Json& value, const std::string& path);
Result<BytesBySource> BytesBySourceFromJson(const json::Json& value, const std::string& path);
Result<AgentReport> AgentReportFromJson(const json::Json& value);
Result<Assignment> AssignmentFromJson(const json::Json& value);

}  // namespace rouse
