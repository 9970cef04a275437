#include "agent/startup/machine.h"

#include <algorithm>

namespace rouse::agent {
namespace {

void Earliest(std::optional<std::int64_t>* moment, std::int64_t at_us) {
  *moment = *moment ? std::min(**moment, at_us) : at_us;
}

void Latest(std::optional<std::int64_t>* moment, std::int64_t at_us) {
  *moment = *moment ? std::max(**moment, at_us) : at_us;
}

constexpr std::size_t kMaxLanes = 16;

}  // namespace

StartupMachine::StartupMachine(const StartPlan& plan) : plan_(plan) {
  if (plan_.files_from_peer) files_ = Files::kWaiting;
  state_waits_ = plan_.reuse_state;
  if (plan_.path != StartPath::kStorage) pull_ = Pull::kOpening;
  moments_.decided_at_us = plan_.decided_at_us;
  moments_.agent_started_us = plan_.agent_started_us;
}

void StartupMachine::Apply(const Event& happened) {
  std::visit([this](const auto& event) { On(event); }, happened);
}

void StartupMachine::On(const event::Begun&) {
  begun_ = true;
  Settle(plan_.agent_started_us);
}

void StartupMachine::On(const event::FilesInPlace& happened) {
  if (files_ == Files::kWaiting) files_ = Files::kInPlace;
  Settle(happened.at_us);
}

void StartupMachine::On(const event::StateSettled& happened) {
  state_waits_ = false;
  Settle(happened.at_us);
}

void StartupMachine::On(const event::EngineGoesOn& happened) {
  if (may_start_) return;
  may_start_ = true;  // It has, and its container's probe must not wait for a pull.
  moments_.engine_may_start_us = happened.at_us;
}

void StartupMachine::On(const event::PullOpened& happened) {
  if (pull_ == Pull::kComplete || pull_ == Pull::kAbandoned) return;
  pull_ = Pull::kRunning;
  pull_peer_ = happened.peer;
  Settle(happened.at_us);
}

void StartupMachine::On(const event::PullComplete& happened) {
  if (pull_ == Pull::kAbandoned) return;
  pull_ = Pull::kComplete;
  Settle(happened.at_us);
}

void StartupMachine::On(const event::PullAbandoned& happened) {
  if (pull_ == Pull::kComplete) return;
  pull_ = Pull::kAbandoned;
  if (!plan_.fall_back_to_storage) {
    On(event::Failure{"no weights from a peer, and the fallback is None: " + happened.reason});
    return;
  }
  Settle(happened.at_us);
}

void StartupMachine::On(const event::RankConnected& happened) {
  // A rank that comes back after it had gone: the engine was started again, and what its last run
  // had reached is no longer so.
  if (ranks_seen_.count(happened.rank) != 0 && ranks_connected_.count(happened.rank) == 0) {
    ForgetEngine();
  }
  ranks_seen_.insert(happened.rank);
  ranks_connected_.insert(happened.rank);
}

void StartupMachine::On(const event::RankDisconnected& happened) {
  const auto found = ranks_connected_.find(happened.rank);
  if (found != ranks_connected_.end()) ranks_connected_.erase(found);
}

void StartupMachine::On(const event::Phase& happened) {
  // With several ranks, a phase begins with the first of them and ends with the last.
  switch (happened.phase) {
    case event::EnginePhase::kEngineImported:
      return Earliest(&moments_.engine_imported_us, happened.at_us);
    case event::EnginePhase::kWorkerStarted:
      return Latest(&moments_.worker_started_us, happened.at_us);
    case event::EnginePhase::kLoadStarted:
      return Earliest(&moments_.load_started_us, happened.at_us);
    case event::EnginePhase::kModelBuilt:
      return Latest(&moments_.model_built_us, happened.at_us);
    case event::EnginePhase::kWeightsLoaded:
      return Earliest(&moments_.weights_loaded_us, happened.at_us);
    case event::EnginePhase::kWeightsProcessed:
      return Latest(&moments_.weights_processed_us, happened.at_us);
    case event::EnginePhase::kModelReady:
      return Latest(&moments_.model_ready_us, happened.at_us);
    case event::EnginePhase::kCompiled:
      return Latest(&moments_.compiled_us, happened.at_us);
    case event::EnginePhase::kProfiled:
      return Latest(&moments_.profiled_us, happened.at_us);
    case event::EnginePhase::kKvCacheReady:
      return Latest(&moments_.kv_cache_ready_us, happened.at_us);
    case event::EnginePhase::kCaptured:
      return Latest(&moments_.captured_us, happened.at_us);
  }
}

void StartupMachine::On(const event::EngineHealthy& happened) {
  trouble_.clear();
  healthy_ = true;
  if (!moments_.engine_healthy_us) moments_.engine_healthy_us = happened.at_us;
}

void StartupMachine::On(const event::EngineUnhealthy& happened) {
  healthy_ = false;
  first_token_ = false;
  trouble_ = happened.reason;
}

void StartupMachine::On(const event::FirstToken& happened) {
  trouble_.clear();
  first_token_ = true;
  if (!moments_.first_token_us) moments_.first_token_us = happened.at_us;
  if (!first_start_) first_start_ = moments_;
}

void StartupMachine::On(const event::CanaryFailed& happened) {
  trouble_ = happened.reason;
}

void StartupMachine::On(const event::Failure& happened) {
  if (failure_.empty()) failure_ = happened.reason.empty() ? "unknown failure" : happened.reason;
}

void StartupMachine::Settle(std::int64_t at_us) {
  if (may_start_ || !begun_ || failed()) return;
  if (files_ == Files::kWaiting || state_waits_ || pull_ == Pull::kOpening) return;
  may_start_ = true;
  moments_.engine_may_start_us = at_us;
}

void StartupMachine::ForgetEngine() {
  ranks_seen_.clear();
  ranks_connected_.clear();
  healthy_ = false;
  first_token_ = false;
  moments_ = {.decided_at_us = moments_.decided_at_us,
              .agent_started_us = moments_.agent_started_us,
              .engine_may_start_us = moments_.engine_may_start_us};
}

AgentState StartupMachine::state() const {
  if (failed()) return AgentState::kFailed;
  if (!begun_) return AgentState::kStarting;
  if (files_ == Files::kWaiting || (state_waits_ && !may_start_)) return AgentState::kHydrating;
  if (!may_start_) return AgentState::kPulling;
  if (healthy_ && first_token_) return AgentState::kServing;
  if (healthy_ || moments_.model_ready_us) return AgentState::kWarming;
  if (moments_.load_started_us || !ranks_connected_.empty()) return AgentState::kLoading;
  return pull_ == Pull::kRunning ? AgentState::kPulling : AgentState::kReady;
}

std::string StartupMachine::message() const {
  switch (state()) {
    case AgentState::kFailed:
      return failure_;
    case AgentState::kStarting:
      return "starting";
    case AgentState::kHydrating:
      return files_ == Files::kWaiting ? "waiting for the model's files from a peer"
                                       : "waiting for compile caches";
    case AgentState::kPulling:
      return pull_ == Pull::kRunning ? "weights are arriving from " + pull_peer_
                                     : "waiting for a peer that serves the weights";
    case AgentState::kReady:
      return trouble_.empty() ? "waiting for the engine to start" : trouble_;
    case AgentState::kLoading:
      return pull_ == Pull::kRunning ? "weights are arriving from " + pull_peer_
                                     : "waiting for the engine to load its weights";
    case AgentState::kWarming:
      if (!trouble_.empty()) return trouble_;
      return healthy_ ? "waiting for the first token" : "waiting for the engine to become healthy";
    case AgentState::kServing:
    case AgentState::kSleeping:  // These three are RoleMachine's.
    case AgentState::kAsleep:
    case AgentState::kWaking:
      return "";
  }
  return "";
}

std::optional<Timeline> StartupMachine::timeline() const {
  if (restored_) return restored_;
  if (!first_start_) return std::nullopt;
  std::vector<Lane> lanes = lanes_;
  if (lanes.size() > kMaxLanes) lanes.resize(kMaxLanes);
  return BuildTimeline(plan_.path, *first_start_, lanes);
}

}  // namespace rouse::agent
