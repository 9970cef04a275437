// Whether an instance serves or sleeps, as a function of what it was told and what has happened.
//
//   Active -> Sleeping -> Asleep -> Waking -> Active;  from the three in the middle also Failed
//
// This is about an instance that has come up: how it does that is StartupMachine's (machine.h), and
// while this one says Active, that one's state counts.
//
// Pure: the shell (agent/server/role_driver.h) reports with Apply what has happened, and does what
// TakeActions says. Time is an argument. Not thread-safe.
//
// What is waited for:
//   Sleeping  peers' leases ended -> the canary asked once more -> the command Sleep done and every
//             rank's arena released -> the memory given back
//   Waking    side by side: the command Wake done, all weights here -> the canary's answer right
// Failed is for good: half an engine's memory may be gone, so only a new instance helps. But an
// engine that says that it cannot sleep before it has given anything up, and answers the canary as
// before, goes on serving.

#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "agent/startup/timeline_builder.h"
#include "common/role.h"
#include "common/timeline.h"

namespace rouse::agent {

struct RoleLimits {
  /// From being told to being asleep, the time of requests under way included.
  std::chrono::milliseconds sleep{120'000};
  /// From being told to the canary's answer.
  std::chrono::milliseconds wake{120'000};
};

/// When a wake began that was decided at `decided_us` (0: that was not said) and asked for at
/// `now_us`: its timeline begins with the decision, unless that clock cannot be right.
std::int64_t WakeBegan(std::int64_t decided_us, std::int64_t now_us);

/// What the shell shall do; each is asked for once.
enum class RoleAction {
  kEndLeases,     ///< Offer nothing to peers any more, and end their leases.
  kRecordCanary,  ///< What it answers now, which its wake is judged by...
  kSleepEngine,   ///< ...and then the command Sleep.
  kFreeWeights,   ///< Every rank has let go: give the memory back.
  kWakeEngine,    ///< The command Wake...
  kPull,          ///< ...and the weights from peers, at the same time.
  kAskCanary,
  kGiveUp,  ///< Failed: end what is under way.
};

/// What can happen. Moments (at_us) are microseconds since the Unix epoch.
namespace role_event {
/// Nothing is offered to peers any more, and nobody reads.
struct LeasesEnded {
  Status status;
};
/// The command under way has ended, well or not.
struct CommandEnded {
  Status status;
  std::int64_t at_us = 0;
};
struct ArenaReleased {  ///< By one rank.
  bool last = false;    ///< By every one now.
};
struct WeightsFreed {
  Status status;
};
struct PullEnded {
  Status status;
};
/// A rank's engine has asked for its new arena, was given slabs, was given the weights.
struct ArenaAsked {
  std::uint32_t rank = 0;
  std::int64_t at_us = 0;
};
struct SlabsGiven {
  std::int64_t at_us = 0;
};
struct WeightsGiven {
  std::int64_t at_us = 0;
};
/// The canary's first token came at `at_us`; ok: its answer was that of before.
struct CanaryAnswered {
  Status status;
  std::int64_t at_us = 0;
};
struct EngineGone {
  std::string reason;
};
}  // namespace role_event

using RoleEvent =
    std::variant<role_event::LeasesEnded, role_event::CommandEnded, role_event::ArenaReleased,
                 role_event::WeightsFreed, role_event::PullEnded, role_event::ArenaAsked,
                 role_event::SlabsGiven, role_event::WeightsGiven, role_event::CanaryAnswered,
                 role_event::EngineGone>;

enum class RoleState { kActive, kSleeping, kAsleep, kWaking, kFailed };

/// What others see of a RoleMachine.
struct RoleStanding {
  RoleState state = RoleState::kActive;
  std::string message;               ///< Why, for kFailed; else what is waited for.
  std::optional<Timeline> timeline;  ///< Of the last wake that got to a token, with its lanes.
};

class RoleMachine {
 public:
  using TimePoint = std::chrono::steady_clock::time_point;

  explicit RoleMachine(const RoleLimits& limits) : limits_(limits) {}

  /// Becomes a guard. `ready` says why that cannot be now, if it cannot: nothing changes then. Ok
  /// when it is one already, or is becoming it. Conflict when it wakes, or has failed.
  Status Sleep(const Status& ready, TimePoint now);
  /// Wakes, with `peers`. Ok when it is awake or waking already. Conflict when it is not asleep yet
  /// or has failed; InvalidArgument without a peer.
  Status Wake(std::vector<Peer> peers, const Status& ready, TimePoint now, std::int64_t at_us);

  void Apply(const RoleEvent& happened);
  /// Fails what has taken too long.
  void Tick(TimePoint now);
  /// When Tick has something to do; nullopt: never.
  std::optional<TimePoint> deadline() const { return deadline_; }
  std::vector<RoleAction> TakeActions() { return std::exchange(actions_, {}); }

  RoleState state() const { return state_; }
  /// Why, for kFailed; else what is waited for; empty when active.
  std::string message() const;
  RoleStanding standing() const { return {state_, message(), timeline_}; }
  const std::vector<Peer>& peers() const { return peers_; }
  const std::optional<Timeline>& timeline() const { return timeline_; }
  /// It has failed before it was asked anything, and `why`.
  void FailAtOnce(const std::string& why);
  /// Adds something that runs beside the phases of the wake under way.
  void AddLane(std::string name, std::int64_t start_us, std::int64_t end_us);

 private:
  void On(const role_event::LeasesEnded& happened);
  void On(const role_event::CommandEnded& happened);
  void On(const role_event::ArenaReleased& happened);
  void On(const role_event::WeightsFreed& happened);
  void On(const role_event::PullEnded& happened);
  void On(const role_event::ArenaAsked& happened);
  void On(const role_event::SlabsGiven& happened);
  void On(const role_event::WeightsGiven& happened);
  void On(const role_event::CanaryAnswered& happened);
  void On(const role_event::EngineGone& happened);
  void Begin(RoleState state, TimePoint deadline, std::vector<RoleAction> actions);
  void OnCommandFailed(const std::string& reason);
  void FreeWhenDone();
  void AskWhenDone();
  void Fail(const std::string& reason);

  RoleLimits limits_;
  RoleState state_ = RoleState::kActive;
  std::optional<TimePoint> deadline_;
  std::vector<RoleAction> actions_;
  std::vector<Peer> peers_;
  std::string failure_;
  // Of the sleep or wake under way.
  bool leases_ended_ = false;
  bool command_done_ = false;
  bool released_ = false;      ///< By every rank.
  bool any_released_ = false;  ///< By some rank.
  std::string refused_;        ///< Why the engine does not sleep.
  bool pulled_ = false;
  bool asked_ = false;
  std::set<std::uint32_t> ranks_asked_;
  WakeMoments moments_;
  std::vector<Lane> lanes_;
  std::optional<Timeline> timeline_;
};

}  // namespace rouse::agent
