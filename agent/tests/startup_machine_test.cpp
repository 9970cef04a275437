#include <catch2/catch.hpp>

#include "agent/startup/machine.h"

using namespace rouse;
using namespace rouse::agent;
namespace ev = rouse::agent::event;

namespace {

const StartPlan kFromStorage{
    .path = StartPath::kStorage, .decided_at_us = 100, .agent_started_us = 200};
const StartPlan kFromPeer{.path = StartPath::kPeer,
                          .files_from_peer = true,
                          .fall_back_to_storage = true,
                          .decided_at_us = 100,
                          .agent_started_us = 200};

AgentState After(const StartPlan& plan, const std::vector<Event>& events) {
  StartupMachine machine(plan);
  for (const Event& happened : events) machine.Apply(happened);
  return machine.state();
}

ev::Phase Phase(ev::EnginePhase phase, std::int64_t at) {
  return {phase, at};
}

}  // namespace

TEST_CASE("A start from storage is Ready at once and then follows the engine") {
  std::vector<Event> events;
  CHECK(After(kFromStorage, events) == AgentState::kStarting);
  const std::pair<Event, AgentState> story[] = {
      {ev::Begun{}, AgentState::kReady},
      {Phase(ev::EnginePhase::kEngineImported, 300), AgentState::kReady},
      {ev::RankConnected{0, 400}, AgentState::kLoading},
      {Phase(ev::EnginePhase::kLoadStarted, 410), AgentState::kLoading},
      {Phase(ev::EnginePhase::kModelBuilt, 450), AgentState::kLoading},
      {Phase(ev::EnginePhase::kModelReady, 500), AgentState::kWarming},
      {ev::RankDisconnected{0}, AgentState::kWarming},
      {Phase(ev::EnginePhase::kCaptured, 600), AgentState::kWarming},
      {ev::EngineHealthy{700}, AgentState::kWarming},
      {ev::CanaryFailed{"no"}, AgentState::kWarming},
      {ev::FirstToken{800}, AgentState::kServing}};
  for (const auto& [happened, state] : story) {
    events.push_back(happened);
    INFO(events.size());
    CHECK(After(kFromStorage, events) == state);
  }
}

TEST_CASE(
    "The engine of a start from a peer waits for files and an opened pull, not for the pull's "
    "end") {
  const Event files = ev::FilesInPlace{300};
  const Event opened = ev::PullOpened{"demo-0", 400};
  CHECK(After(kFromPeer, {ev::Begun{}}) == AgentState::kHydrating);
  CHECK(After(kFromPeer, {ev::Begun{}, files}) == AgentState::kPulling);
  CHECK(After(kFromPeer, {ev::Begun{}, opened}) == AgentState::kHydrating);
  CHECK(After(kFromPeer, {ev::Begun{}, files, opened}) == AgentState::kPulling);
  CHECK(After(kFromPeer, {ev::Begun{}, opened, files}) == AgentState::kPulling);
  CHECK(After(kFromPeer, {ev::Begun{}, opened, files, ev::PullComplete{500}}) ==
        AgentState::kReady);
  CHECK(After(kFromPeer, {ev::Begun{}, opened, files, ev::RankConnected{0, 500}}) ==
        AgentState::kLoading);
  CHECK(After(kFromPeer, {opened, files}) == AgentState::kStarting);

  StartupMachine machine(kFromPeer);
  machine.Apply(ev::Begun{});
  machine.Apply(files);
  CHECK_FALSE(machine.engine_may_start());
  CHECK(machine.message() == "waiting for a peer that serves the weights");
  machine.Apply(opened);
  CHECK(machine.engine_may_start());
  CHECK(machine.moments().engine_may_start_us == 400);
  CHECK(machine.message() == "weights are arriving from demo-0");
  machine.Apply(ev::PullComplete{500});
  CHECK(machine.message() == "waiting for the engine to start");
  CHECK(machine.moments().engine_may_start_us == 400);
}

TEST_CASE("A pull that is given up lets the engine start from storage, or fails when it may not") {
  CHECK(After(kFromPeer, {ev::Begun{}, ev::FilesInPlace{300}, ev::PullAbandoned{"nobody", 400}}) ==
        AgentState::kReady);
  StartPlan strict = kFromPeer;
  strict.fall_back_to_storage = false;
  StartupMachine machine(strict);
  machine.Apply(ev::Begun{});
  machine.Apply(ev::FilesInPlace{300});
  machine.Apply(ev::PullAbandoned{"nobody has them", 400});
  CHECK(machine.state() == AgentState::kFailed);
  CHECK(machine.message() == "no weights from a peer, and the fallback is None: nobody has them");
  CHECK_FALSE(machine.engine_may_start());
}

TEST_CASE("Failure is final and keeps its first reason") {
  StartupMachine machine(kFromStorage);
  machine.Apply(ev::Begun{});
  machine.Apply(ev::Failure{"first"});
  machine.Apply(ev::Failure{"second"});
  machine.Apply(ev::EngineHealthy{1});
  machine.Apply(ev::FirstToken{2});
  CHECK(machine.state() == AgentState::kFailed);
  CHECK(machine.message() == "first");
}

TEST_CASE(
    "An engine that is started again loses what its last run had reached, the timeline stays") {
  StartupMachine machine(kFromStorage);
  for (const Event& happened : std::vector<Event>{
           ev::Begun{}, ev::RankConnected{0, 300}, Phase(ev::EnginePhase::kLoadStarted, 310),
           Phase(ev::EnginePhase::kModelReady, 400), ev::EngineHealthy{500}, ev::FirstToken{600}}) {
    machine.Apply(happened);
  }
  const auto timeline = machine.timeline();
  REQUIRE(timeline.has_value());
  CHECK(timeline->total_us == 500);
  machine.Apply(ev::EngineUnhealthy{"it does not answer"});
  CHECK(machine.state() == AgentState::kWarming);
  CHECK(machine.message() == "it does not answer");
  machine.Apply(ev::RankDisconnected{0});
  machine.Apply(ev::RankConnected{0, 900});
  CHECK(machine.state() == AgentState::kLoading);
  machine.Apply(Phase(ev::EnginePhase::kModelReady, 950));
  machine.Apply(ev::EngineHealthy{1000});
  machine.Apply(ev::FirstToken{1100});
  CHECK(machine.state() == AgentState::kServing);
  CHECK(machine.timeline() == timeline);
}

TEST_CASE("What an engine says it has reached ends its part of the timeline") {
  StartupMachine machine(kFromStorage);
  machine.Apply(ev::Begun{});
  std::int64_t at = 200;
  for (const auto& [phase, name] : kEnginePhases) machine.Apply(Phase(phase, at += 10));
  machine.Apply(ev::EngineHealthy{at += 10});
  machine.Apply(ev::FirstToken{at += 10});
  const auto timeline = machine.timeline();
  REQUIRE(timeline.has_value());
  REQUIRE(timeline->phases.size() == std::size(kPhaseNames));
  for (std::size_t i = 2; i < timeline->phases.size(); ++i) {
    INFO(kPhaseNames[i]);
    CHECK(timeline->phases[i].end_us > timeline->phases[i].start_us);
  }
  CHECK(timeline->lanes.size() == 2);
}

TEST_CASE("A second connection of a rank that is still there is no restart") {
  StartupMachine machine(kFromStorage);
  machine.Apply(ev::Begun{});
  machine.Apply(ev::RankConnected{0, 300});
  machine.Apply(Phase(ev::EnginePhase::kModelReady, 400));
  machine.Apply(ev::RankConnected{0, 500});
  CHECK(machine.state() == AgentState::kWarming);
  machine.Apply(ev::RankConnected{1, 500});
  CHECK(machine.state() == AgentState::kWarming);
}

TEST_CASE("With several ranks a phase begins with the first and ends with the last") {
  StartupMachine machine(kFromStorage);
  machine.Apply(ev::Begun{});
  for (const std::int64_t at : {320, 310, 330}) {
    machine.Apply(Phase(ev::EnginePhase::kLoadStarted, at));
    machine.Apply(Phase(ev::EnginePhase::kModelReady, at + 100));
  }
  CHECK(machine.moments().load_started_us == 310);
  CHECK(machine.moments().model_ready_us == 430);
}

TEST_CASE("A timeline that an earlier run of the agent had written stays the pod's") {
  StartupMachine machine(kFromStorage);
  Timeline earlier;
  earlier.decided_at_us = 7;
  machine.RestoreTimeline(earlier);
  machine.Apply(ev::Begun{});
  machine.Apply(ev::EngineHealthy{500});
  machine.Apply(ev::FirstToken{600});
  CHECK(machine.timeline() == earlier);
}

TEST_CASE("An engine that goes on needs no pull, and is told of none before one has opened") {
  StartupMachine machine({.path = StartPath::kPeer, .decided_at_us = 1, .agent_started_us = 2});
  machine.Apply(event::Begun{});
  CHECK_FALSE(machine.engine_may_start());
  CHECK_FALSE(machine.settled());
  machine.Apply(event::EngineGoesOn{3});
  CHECK(machine.engine_may_start());
  CHECK_FALSE(machine.settled());
  machine.Apply(event::EngineHealthy{4});
  machine.Apply(event::FirstToken{5});
  CHECK(machine.serving());
  SECTION("a pull that opens settles it") {
    machine.Apply(event::PullOpened{"demo-0", 6});
    CHECK(machine.settled());
    CHECK(machine.serving());
  }
  SECTION("so does one that is given up") {
    machine.Apply(event::PullAbandoned{"nobody", 6});
    CHECK(machine.settled());
    CHECK_FALSE(machine.failed());
  }
}

TEST_CASE("The engine waits until compile caches are settled, whatever else has come") {
  StartPlan plan = kFromStorage;
  plan.reuse_state = true;
  StartupMachine machine(plan);
  machine.Apply(ev::Begun{});
  CHECK(machine.state() == AgentState::kHydrating);
  CHECK(machine.message() == "waiting for compile caches");
  CHECK_FALSE(machine.engine_may_start());
  machine.Apply(ev::StateSettled{700});
  CHECK(machine.engine_may_start());
  CHECK(machine.state() == AgentState::kReady);
  CHECK(machine.moments().engine_may_start_us == 700);

  // Files, caches and weights, in any order: the last one counts.
  plan = kFromPeer;
  plan.reuse_state = true;
  StartupMachine target(plan);
  target.Apply(ev::Begun{});
  target.Apply(ev::StateSettled{300});
  CHECK(target.message() == "waiting for the model's files from a peer");
  target.Apply(ev::FilesInPlace{400});
  target.Apply(ev::PullOpened{"demo-0", 500});
  CHECK(target.engine_may_start());
  CHECK(target.moments().engine_may_start_us == 500);
  // An engine that goes on needs none.
  plan.files_from_peer = false;
  StartupMachine again(plan);
  again.Apply(ev::Begun{});
  again.Apply(ev::EngineGoesOn{600});
  CHECK(again.engine_may_start());
  CHECK(again.state() != AgentState::kHydrating);
}
