#include "agent/startup/role.h"

#include <algorithm>

namespace rouse::agent {
namespace {

std::string Seconds(std::chrono::milliseconds time) {
  return std::to_string(std::chrono::duration_cast<std::chrono::seconds>(time).count()) + " s";
}

}  // namespace

std::int64_t WakeBegan(std::int64_t decided_us, std::int64_t now_us) {
  constexpr std::int64_t kLongestUs = 60'000'000;
  return decided_us > now_us - kLongestUs && decided_us <= now_us ? decided_us : now_us;
}

Status RoleMachine::Sleep(const Status& ready, TimePoint now) {
  switch (state_) {
    case RoleState::kSleeping:
    case RoleState::kAsleep:
      return {};
    case RoleState::kWaking:
      return Status(StatusCode::kConflict, "it wakes: ask again when it serves");
    case RoleState::kFailed:
      return Status(StatusCode::kConflict, "it has failed for good: " + failure_);
    case RoleState::kActive:
      break;
  }
  if (!ready.ok()) return Status(StatusCode::kConflict, "it cannot sleep now: " + ready.message());
  Begin(RoleState::kSleeping, now + limits_.sleep, {RoleAction::kEndLeases});
  return {};
}

Status RoleMachine::Wake(std::vector<Peer> peers, const Status& ready, TimePoint now,
                         std::int64_t at_us) {
  switch (state_) {
    case RoleState::kActive:
    case RoleState::kWaking:
      return {};
    case RoleState::kSleeping:
      return Status(StatusCode::kConflict, "it is not asleep yet (" + message() + "): ask again");
    case RoleState::kFailed:
      return Status(StatusCode::kConflict, "it has failed for good: " + failure_);
    case RoleState::kAsleep:
      break;
  }
  if (peers.empty()) {
    return InvalidArgument("peers: names nobody whose weights it could wake with");
  }
  if (!ready.ok()) return Status(StatusCode::kConflict, "it cannot wake now: " + ready.message());
  peers_ = std::move(peers);
  moments_ = {.asked_us = at_us};
  lanes_.clear();
  ranks_asked_.clear();
  Begin(RoleState::kWaking, now + limits_.wake, {RoleAction::kWakeEngine, RoleAction::kPull});
  return {};
}

void RoleMachine::Begin(RoleState state, TimePoint deadline, std::vector<RoleAction> actions) {
  state_ = state;
  deadline_ = deadline;
  actions_ = std::move(actions);
  leases_ended_ = command_done_ = released_ = any_released_ = pulled_ = asked_ = false;
  refused_.clear();
}

void RoleMachine::Apply(const RoleEvent& happened) {
  std::visit([this](const auto& event) { On(event); }, happened);
}

void RoleMachine::On(const role_event::LeasesEnded& happened) {
  if (state_ != RoleState::kSleeping || leases_ended_) return;
  if (!happened.status.ok()) return Fail(happened.status.message());
  leases_ended_ = true;
  actions_.push_back(RoleAction::kRecordCanary);
  actions_.push_back(RoleAction::kSleepEngine);
}

void RoleMachine::On(const role_event::CommandEnded& happened) {
  if (state_ != RoleState::kSleeping && state_ != RoleState::kWaking) return;
  if (!happened.status.ok()) return OnCommandFailed(happened.status.message());
  command_done_ = true;
  moments_.command_done_us = happened.at_us;
  FreeWhenDone();
  AskWhenDone();
}

// Whether it can go on serving, only the engine itself can show.
void RoleMachine::OnCommandFailed(const std::string& reason) {
  if (state_ != RoleState::kSleeping || any_released_) return Fail(reason);
  refused_ = reason;
  actions_.push_back(RoleAction::kAskCanary);
}

void RoleMachine::On(const role_event::ArenaReleased& happened) {
  if (state_ != RoleState::kSleeping) return;
  any_released_ = true;
  released_ = happened.last;
  if (!refused_.empty()) return Fail(refused_ + "; and then it gave weights up");
  FreeWhenDone();
}

void RoleMachine::On(const role_event::WeightsFreed& happened) {
  if (state_ != RoleState::kSleeping) return;
  if (!happened.status.ok()) return Fail(happened.status.message());
  state_ = RoleState::kAsleep;
  deadline_.reset();
}

void RoleMachine::On(const role_event::PullEnded& happened) {
  if (state_ != RoleState::kWaking) return;
  if (!happened.status.ok()) return Fail("no weights: " + happened.status.message());
  pulled_ = true;
  AskWhenDone();
}

void RoleMachine::On(const role_event::ArenaAsked& happened) {
  if (state_ != RoleState::kWaking || !ranks_asked_.insert(happened.rank).second) return;
  moments_.arenas_asked_us = happened.at_us;
}

void RoleMachine::On(const role_event::SlabsGiven& happened) {
  moments_.slabs_given_us = happened.at_us;
}

void RoleMachine::On(const role_event::WeightsGiven& happened) {
  moments_.weights_given_us = happened.at_us;
}

void RoleMachine::On(const role_event::CanaryAnswered& happened) {
  if (state_ == RoleState::kSleeping && !refused_.empty()) {
    if (!happened.status.ok()) {
      return Fail(refused_ + "; and it does not go on serving: " + happened.status.message());
    }
    state_ = RoleState::kActive;
    deadline_.reset();
    return;
  }
  if (state_ != RoleState::kWaking) return;
  if (!happened.status.ok()) return Fail("canary: " + happened.status.message());
  moments_.first_token_us = happened.at_us;
  timeline_ = BuildWakeTimeline(moments_, lanes_);
  state_ = RoleState::kActive;
  deadline_.reset();
}

void RoleMachine::On(const role_event::EngineGone& happened) {
  if (state_ == RoleState::kActive || state_ == RoleState::kFailed) return;
  Fail(happened.reason);
}

void RoleMachine::FreeWhenDone() {
  if (state_ != RoleState::kSleeping || !released_ || !command_done_) return;
  actions_.push_back(RoleAction::kFreeWeights);
}

// Not before both: a canary would wait in the engine, and its time would be another's.
void RoleMachine::AskWhenDone() {
  if (state_ != RoleState::kWaking || !pulled_ || !command_done_ || asked_) return;
  asked_ = true;
  actions_.push_back(RoleAction::kAskCanary);
}

void RoleMachine::Tick(TimePoint now) {
  if (!deadline_ || now < *deadline_) return;
  const bool sleeps = state_ == RoleState::kSleeping;
  Fail("not " + std::string(sleeps ? "asleep" : "awake") + " within " +
       Seconds(sleeps ? limits_.sleep : limits_.wake) + ": still " + message());
}

void RoleMachine::FailAtOnce(const std::string& why) {
  failure_ = why;
  state_ = RoleState::kFailed;
}

void RoleMachine::Fail(const std::string& reason) {
  failure_ = (state_ == RoleState::kSleeping ? "sleep failed: "
              : state_ == RoleState::kWaking ? "wake failed: "
                                             : "lost while asleep: ") +
             reason;
  state_ = RoleState::kFailed;
  deadline_.reset();
  actions_ = {RoleAction::kGiveUp};
}

void RoleMachine::AddLane(std::string name, std::int64_t start_us, std::int64_t end_us) {
  if (state_ != RoleState::kWaking) return;
  lanes_.push_back({.name = std::move(name), .start_us = start_us, .end_us = end_us});
}

std::string RoleMachine::message() const {
  switch (state_) {
    case RoleState::kActive:
      return "";
    case RoleState::kSleeping:
      if (!leases_ended_) return "waiting for peers that read the weights";
      if (!refused_.empty()) return "it does not sleep (" + refused_ + "), waiting for the canary";
      if (!command_done_) return "waiting for the engine to go to sleep";
      return released_ ? "giving the weights' memory back"
                       : "waiting for every rank to give its weights up";
    case RoleState::kAsleep:
      return "asleep: it holds no weights until it is woken";
    case RoleState::kWaking:
      if (asked_) return "waiting for the canary's answer";
      if (!pulled_ && !command_done_) return "waiting for the weights and the engine";
      return pulled_ ? "waiting for the engine to wake" : "waiting for the weights";
    case RoleState::kFailed:
      return failure_;
  }
  return "";
}

}  // namespace rouse::agent
