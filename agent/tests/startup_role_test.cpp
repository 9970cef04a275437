#include <catch2/catch.hpp>

#include "agent/startup/report.h"
#include "agent/startup/role.h"

using namespace rouse;
using namespace rouse::agent;
using namespace std::chrono_literals;
namespace role_ev = rouse::agent::role_event;

namespace {

using Actions = std::vector<RoleAction>;

const RoleMachine::TimePoint kNow{};
const Status kReady;
const std::vector<Peer> kPeers = {{.pod = "demo-1", .node = "n", .address = "http://a"}};

RoleMachine Machine() {
  return RoleMachine({.sleep = 10s, .wake = 5s});
}

RoleMachine Asleep() {
  RoleMachine machine = Machine();
  REQUIRE(machine.Sleep(kReady, kNow).ok());
  machine.Apply(role_ev::LeasesEnded{});
  machine.Apply(role_ev::CommandEnded{});
  machine.Apply(role_ev::ArenaReleased{true});
  machine.Apply(role_ev::WeightsFreed{});
  machine.TakeActions();
  REQUIRE(machine.state() == RoleState::kAsleep);
  return machine;
}

RoleMachine Waking() {
  RoleMachine machine = Asleep();
  REQUIRE(machine.Wake(kPeers, kReady, kNow, 1'000).ok());
  return machine;
}

}  // namespace

TEST_CASE("An instance goes to sleep step by step") {
  RoleMachine machine = Machine();
  CHECK(machine.message().empty());
  CHECK_FALSE(machine.deadline().has_value());
  REQUIRE(machine.Sleep(kReady, kNow).ok());
  CHECK(machine.state() == RoleState::kSleeping);
  CHECK(machine.deadline() == kNow + 10s);
  CHECK(machine.TakeActions() == Actions{RoleAction::kEndLeases});
  CHECK(machine.message() == "waiting for peers that read the weights");
  CHECK(machine.Sleep(kReady, kNow).ok());
  CHECK(machine.TakeActions().empty());
  machine.Apply(role_ev::LeasesEnded{});
  CHECK(machine.TakeActions() == Actions{RoleAction::kRecordCanary, RoleAction::kSleepEngine});
  CHECK(machine.message() == "waiting for the engine to go to sleep");
  // In either order.
  const bool command_first = GENERATE(true, false);
  machine.Apply(command_first ? RoleEvent(role_ev::CommandEnded{})
                              : RoleEvent(role_ev::ArenaReleased{true}));
  CHECK(machine.TakeActions().empty());
  machine.Apply(command_first ? RoleEvent(role_ev::ArenaReleased{true})
                              : RoleEvent(role_ev::CommandEnded{}));
  CHECK(machine.TakeActions() == Actions{RoleAction::kFreeWeights});
  CHECK(machine.message() == "giving the weights' memory back");
  machine.Apply(role_ev::WeightsFreed{});
  CHECK(machine.state() == RoleState::kAsleep);
  CHECK_FALSE(machine.deadline().has_value());
  CHECK(machine.Sleep(kReady, kNow).ok());
  machine.Tick(kNow + 1h);
  CHECK(machine.state() == RoleState::kAsleep);
}

TEST_CASE("An engine that does not sleep, and has given nothing up, goes on serving") {
  RoleMachine machine = Machine();
  REQUIRE(machine.Sleep(kReady, kNow).ok());
  machine.Apply(role_ev::LeasesEnded{});
  machine.TakeActions();
  const RoleEvent refused = role_ev::CommandEnded{Unavailable("cannot sleep with LoRA")};
  SECTION("when its canary answers") {
    machine.Apply(refused);
    CHECK(machine.state() == RoleState::kSleeping);
    CHECK(machine.TakeActions() == Actions{RoleAction::kAskCanary});
    CHECK(machine.message().find("cannot sleep with LoRA") != std::string::npos);
    machine.Apply(role_ev::CanaryAnswered{{}, 5});
    CHECK(machine.state() == RoleState::kActive);
    CHECK_FALSE(machine.deadline().has_value());
    CHECK_FALSE(machine.timeline().has_value());
    REQUIRE(machine.Sleep(kReady, kNow).ok());
    CHECK(machine.message() == "waiting for peers that read the weights");
  }
  SECTION("but not when it answers otherwise") {
    machine.Apply(refused);
    machine.Apply(role_ev::CanaryAnswered{DataLoss("y, not x"), 5});
    CHECK(machine.message() ==
          "sleep failed: cannot sleep with LoRA; and it does not go on serving: y, not x");
  }
  SECTION("but not when it ends") {
    machine.Apply(refused);
    machine.Apply(role_ev::EngineGone{"it has ended"});
    CHECK(machine.message() == "sleep failed: it has ended");
    machine.Apply(role_ev::CanaryAnswered{{}, 5});
    CHECK(machine.state() == RoleState::kFailed);
  }
  SECTION("but not when some rank has let go of its weights") {
    machine.Apply(role_ev::ArenaReleased{false});
    machine.Apply(refused);
    CHECK(machine.message() == "sleep failed: cannot sleep with LoRA");
  }
}

TEST_CASE("A guard wakes when weights and engine are there and the canary answers as before") {
  RoleMachine machine = Waking();
  CHECK(machine.TakeActions() == Actions{RoleAction::kWakeEngine, RoleAction::kPull});
  CHECK(machine.peers() == kPeers);
  CHECK(machine.Wake(kPeers, kReady, kNow, 0).ok());
  CHECK(machine.TakeActions().empty());
  machine.Apply(role_ev::ArenaAsked{0, 1'010});
  machine.Apply(role_ev::ArenaAsked{1, 1'020});
  machine.Apply(role_ev::ArenaAsked{0, 1'900});  // Asks again: it was Pending.
  machine.Apply(role_ev::SlabsGiven{1'050});
  machine.Apply(role_ev::WeightsGiven{1'100});
  machine.AddLane("Pull", 1'005, 1'090);
  const bool pull_first = GENERATE(true, false);
  const RoleEvent command = role_ev::CommandEnded{{}, 1'120};
  machine.Apply(pull_first ? RoleEvent(role_ev::PullEnded{}) : command);
  CHECK(machine.TakeActions().empty());
  machine.Apply(pull_first ? command : RoleEvent(role_ev::PullEnded{}));
  CHECK(machine.TakeActions() == Actions{RoleAction::kAskCanary});
  CHECK(machine.message() == "waiting for the canary's answer");
  machine.Apply(role_ev::CanaryAnswered{{}, 1'150});
  CHECK(machine.state() == RoleState::kActive);
  REQUIRE(machine.timeline().has_value());
  const Timeline& timeline = *machine.timeline();
  CHECK(timeline.path == StartPath::kWake);
  CHECK(timeline.decided_at_us == 1'000);
  CHECK(timeline.phases == std::vector<Span>{{"Command", 0, 20},
                                             {"Map", 20, 50},
                                             {"Weights", 50, 100},
                                             {"Resume", 100, 120},
                                             {"Canary", 120, 150}});
  CHECK(timeline.lanes == std::vector<Span>{{"Pull", 5, 90}});
  CHECK(timeline.total_us == 150);
  CHECK(TimelineFromJson(ToJson(timeline), "").ok());
}

TEST_CASE("What cannot be done now is a conflict, and changes nothing") {
  RoleMachine machine = Machine();
  const Status busy = Unavailable("its weights are not digested");
  CHECK(machine.Sleep(busy, kNow).code() == StatusCode::kConflict);
  CHECK(machine.Sleep(busy, kNow).message().find("not digested") != std::string::npos);
  CHECK(machine.state() == RoleState::kActive);
  CHECK(machine.Wake(kPeers, busy, kNow, 0).ok());  // It is awake.
  REQUIRE(machine.Sleep(kReady, kNow).ok());
  CHECK(machine.Wake(kPeers, kReady, kNow, 0).code() == StatusCode::kConflict);
  RoleMachine asleep = Asleep();
  CHECK(asleep.Wake({}, kReady, kNow, 0).code() == StatusCode::kInvalidArgument);
  CHECK(asleep.Wake(kPeers, busy, kNow, 0).code() == StatusCode::kConflict);
  CHECK(asleep.state() == RoleState::kAsleep);
  RoleMachine waking = Waking();
  CHECK(waking.Sleep(kReady, kNow).code() == StatusCode::kConflict);
  CHECK(waking.state() == RoleState::kWaking);
}

TEST_CASE("What fails is failed for good, with the reason") {
  const auto [machine, happened, said] = GENERATE(table<RoleMachine (*)(), RoleEvent, std::string>(
      {{Waking, role_ev::CommandEnded{Unavailable("no KV memory")}, "wake failed: no KV memory"},
       {Waking, role_ev::PullEnded{Unavailable("nobody")}, "wake failed: no weights: nobody"},
       {Waking, role_ev::EngineGone{"rank 0 has ended"}, "wake failed: rank 0 has ended"},
       {Asleep, role_ev::EngineGone{"rank 0 has ended"}, "lost while asleep: rank 0 has ended"}}));
  RoleMachine failed = machine();
  failed.Apply(happened);
  CHECK(failed.state() == RoleState::kFailed);
  CHECK(failed.message() == said);
  CHECK(failed.TakeActions() == Actions{RoleAction::kGiveUp});
  failed.Apply(role_ev::CommandEnded{});
  failed.Apply(role_ev::PullEnded{});
  failed.Apply(role_ev::EngineGone{"again"});
  failed.Apply(role_ev::CanaryAnswered{});
  CHECK(failed.state() == RoleState::kFailed);
  CHECK(failed.message() == said);
  CHECK(failed.TakeActions().empty());
  CHECK(failed.Sleep(kReady, kNow).code() == StatusCode::kConflict);
  CHECK(failed.Wake(kPeers, kReady, kNow, 0).message().find(said) != std::string::npos);
}

TEST_CASE("A canary with another answer fails the wake") {
  RoleMachine machine = Waking();
  machine.Apply(role_ev::PullEnded{});
  machine.Apply(role_ev::CommandEnded{});
  machine.Apply(role_ev::CanaryAnswered{DataLoss("y, not x"), 7});
  CHECK(machine.state() == RoleState::kFailed);
  CHECK(machine.message() == "wake failed: canary: y, not x");
  CHECK_FALSE(machine.timeline().has_value());
}

TEST_CASE("What takes too long fails, and says what it waited for") {
  RoleMachine sleeping = Machine();
  REQUIRE(sleeping.Sleep(kReady, kNow).ok());
  sleeping.Tick(kNow + 9s);
  CHECK(sleeping.state() == RoleState::kSleeping);
  sleeping.Tick(kNow + 10s);
  CHECK(sleeping.message() ==
        "sleep failed: not asleep within 10 s: still waiting for peers that read the weights");
  RoleMachine waking = Waking();
  waking.Apply(role_ev::PullEnded{});
  waking.Tick(kNow + 5s);
  CHECK(waking.message() ==
        "wake failed: not awake within 5 s: still waiting for the engine to wake");
  CHECK(waking.TakeActions() == Actions{RoleAction::kGiveUp});
}

TEST_CASE("An engine that goes while its instance serves is its start's matter") {
  RoleMachine machine = Machine();
  machine.Apply(role_ev::EngineGone{"x"});
  machine.Apply(role_ev::ArenaReleased{true});
  machine.Apply(role_ev::CommandEnded{Unavailable("x")});
  CHECK(machine.state() == RoleState::kActive);
  CHECK(machine.TakeActions().empty());
}

TEST_CASE("The role's word counts unless the instance is to serve") {
  StartupMachine start({});
  start.Apply(event::Begun{});
  start.Apply(event::EngineHealthy{300});
  start.Apply(event::FirstToken{400});
  CHECK(StandingOf(start, Machine().standing(), false).state == AgentState::kServing);
  CHECK(StandingOf(start, Machine().standing(), false).timeline->path == StartPath::kStorage);
  const Standing without = StandingOf(start, Machine().standing(), true);
  CHECK(without.state == AgentState::kWarming);
  CHECK(without.message.find("no weights") != std::string::npos);
  CHECK(StandingOf(start, Asleep().standing(), true).state == AgentState::kAsleep);
  const Standing asleep = StandingOf(start, Asleep().standing(), false);
  CHECK(asleep.state == AgentState::kAsleep);
  CHECK(asleep.message.find("asleep") == 0);
  CHECK(StandingOf(start, Waking().standing(), false).state == AgentState::kWaking);
  RoleMachine failed = Machine();
  failed.FailAtOnce("started again");
  CHECK(StandingOf(start, failed.standing(), false).state == AgentState::kFailed);
  CHECK(StandingOf(start, failed.standing(), false).message == "started again");
  start.Apply(event::Failure{"no plugin"});
  CHECK(StandingOf(start, Machine().standing(), false).message == "no plugin");
}
