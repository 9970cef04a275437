// The agent's state as a function of what has happened to it.
//
// Pure: the shell (agent/server/agent.h) reports what happened with Apply, and asks what that
// means: which state to report, whether the engine may start, where the engine's weights come from,
// what the timeline is. Time is part of the events. Not thread-safe; the shell has one lock around
// it.

#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include "agent/startup/timeline_builder.h"
#include "common/messages.h"

namespace rouse::agent {

/// What was decided before the agent ran.
struct StartPlan {
  StartPath path = StartPath::kStorage;
  bool files_from_peer = false;      ///< The model folder is ours to fill.
  bool reuse_state = false;          ///< Compile caches are put in place, if there are any.
  bool begin_without = false;        ///< The engine gets no weights before it is woken.
  bool fall_back_to_storage = true;  ///< Otherwise an instance without its peer's weights fails.
  std::int64_t decided_at_us = 0;
  std::int64_t agent_started_us = 0;
};

/// What can happen. Moments (at_us) are microseconds since the Unix epoch.
namespace event {
struct Begun {};  ///< The agent's own parts are up.
struct FilesInPlace {
  std::int64_t at_us = 0;
};
/// Compile caches are in place, or the engine starts without them.
struct StateSettled {
  std::int64_t at_us = 0;
};
/// The engine of a run of this agent before this one goes on, with the weights that it has.
struct EngineGoesOn {
  std::int64_t at_us = 0;
};
struct PullOpened {
  std::string peer;  ///< The pod the weights come from.
  std::int64_t at_us = 0;
};
struct PullComplete {
  std::int64_t at_us = 0;
};
struct PullAbandoned {
  std::string reason;
  std::int64_t at_us = 0;
};
struct RankConnected {
  std::uint32_t rank = 0;
  std::int64_t at_us = 0;
};
struct RankDisconnected {
  std::uint32_t rank = 0;
};
/// What an engine's rank has reached of its start, in order (docs/protocols.md §3).
enum class EnginePhase {
  kEngineImported,
  kWorkerStarted,
  kLoadStarted,
  kModelBuilt,
  kWeightsLoaded,
  kWeightsProcessed,
  kModelReady,
  kCompiled,
  kProfiled,
  kKvCacheReady,
  kCaptured
};
struct Phase {
  EnginePhase phase = EnginePhase::kEngineImported;
  std::int64_t at_us = 0;
};
struct EngineHealthy {
  std::int64_t at_us = 0;
};
struct EngineUnhealthy {
  std::string reason;
};
struct FirstToken {
  std::int64_t at_us = 0;
};
struct CanaryFailed {
  std::string reason;
};
struct Failure {
  std::string reason;
};
}  // namespace event

inline constexpr json::EnumName<event::EnginePhase> kEnginePhases[] = {
    {event::EnginePhase::kEngineImported, "EngineImported"},
    {event::EnginePhase::kWorkerStarted, "WorkerStarted"},
    {event::EnginePhase::kLoadStarted, "LoadStarted"},
    {event::EnginePhase::kModelBuilt, "ModelBuilt"},
    {event::EnginePhase::kWeightsLoaded, "WeightsLoaded"},
    {event::EnginePhase::kWeightsProcessed, "WeightsProcessed"},
    {event::EnginePhase::kModelReady, "ModelReady"},
    {event::EnginePhase::kCompiled, "Compiled"},
    {event::EnginePhase::kProfiled, "Profiled"},
    {event::EnginePhase::kKvCacheReady, "KvCacheReady"},
    {event::EnginePhase::kCaptured, "Captured"}};

using Event =
    std::variant<event::Begun, event::FilesInPlace, event::StateSettled, event::EngineGoesOn,
                 event::PullOpened, event::PullComplete, event::PullAbandoned, event::RankConnected,
                 event::RankDisconnected, event::Phase, event::EngineHealthy,
                 event::EngineUnhealthy, event::FirstToken, event::CanaryFailed, event::Failure>;

class StartupMachine {
 public:
  explicit StartupMachine(const StartPlan& plan);

  void Apply(const Event& happened);

  AgentState state() const;
  /// Why, for kFailed; else what is waited for; empty when serving.
  std::string message() const;
  /// True once what the engine finds at its start is settled; never becomes false again.
  bool engine_may_start() const { return may_start_; }
  /// Whether an engine that starts now can be told where its weights come from: also false while
  /// one goes on for which nothing is pulled.
  bool settled() const { return may_start_ && pull_ != Pull::kOpening; }
  bool failed() const { return !failure_.empty(); }
  bool engine_healthy() const { return healthy_; }
  bool serving() const { return state() == AgentState::kServing; }
  /// Of the first start that got to a token, with all lanes so far.
  std::optional<Timeline> timeline() const;
  /// The timeline of this pod's start, from a run of the agent before this one: it stays the pod's.
  void RestoreTimeline(Timeline timeline) { restored_ = std::move(timeline); }
  /// Adds something that ran beside the phases.
  void AddLane(Lane lane) { lanes_.push_back(std::move(lane)); }
  const StartPlan& plan() const { return plan_; }
  const Moments& moments() const { return moments_; }

 private:
  enum class Files { kNotNeeded, kWaiting, kInPlace };
  enum class Pull { kNotWanted, kOpening, kRunning, kComplete, kAbandoned };

  void On(const event::Begun&);
  void On(const event::FilesInPlace& happened);
  void On(const event::StateSettled& happened);
  void On(const event::EngineGoesOn& happened);
  void On(const event::PullOpened& happened);
  void On(const event::PullComplete&);
  void On(const event::PullAbandoned& happened);
  void On(const event::RankConnected& happened);
  void On(const event::RankDisconnected& happened);
  void On(const event::Phase& happened);
  void On(const event::EngineHealthy& happened);
  void On(const event::EngineUnhealthy& happened);
  void On(const event::FirstToken& happened);
  void On(const event::CanaryFailed& happened);
  void On(const event::Failure& happened);
  void Settle(std::int64_t at_us);
  void ForgetEngine();

  StartPlan plan_;
  bool begun_ = false;
  bool may_start_ = false;
  Files files_ = Files::kNotNeeded;
  bool state_waits_ = false;
  Pull pull_ = Pull::kNotWanted;
  std::string pull_peer_;
  std::string failure_;
  std::string trouble_;  ///< Last trouble with the engine that may pass.
  std::set<std::uint32_t> ranks_seen_;
  std::multiset<std::uint32_t> ranks_connected_;
  bool healthy_ = false;
  bool first_token_ = false;
  Moments moments_;
  std::optional<Moments> first_start_;
  std::optional<Timeline> restored_;
  std::vector<Lane> lanes_;
};

}  // namespace rouse::agent
