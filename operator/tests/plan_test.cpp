#include <catch2/catch.hpp>

#include "operator/plan/planner.h"
#include "operator/plan/source.h"
#include "operator/tests/state.h"

using namespace rouse;
using namespace rouse::plan;
using namespace rouse::plan::testing;
using std::chrono::seconds;

TEST_CASE("the first replica starts from storage, the others wait for its weights") {
  const Plan plan = MakePlan(State(3).Done(), kNow);
  CHECK(Printed(plan) ==
        Lines{"create demo-0 by Storage (Wake: no guards; Peer: no other instance runs)"});
  const auto& create = std::get<CreateInstance>(plan.actions.at(0));
  CHECK(create.decided_at == kNow);
  CHECK(create.launch_identity == api::LaunchIdentity(Service(3).spec));
  CHECK(plan.replan_after.has_value());
}

TEST_CASE("replicas wait a bounded time for a source that is coming") {
  State state(3);
  state.Starting("demo-0", StartPath::kStorage, AgentState::kLoading, seconds(100));
  const Plan waiting = MakePlan(state.Done(), kNow);
  CHECK(waiting.actions.empty());
  CHECK(waiting.replan_after == std::chrono::seconds(20));
  const auto& progressing = ConditionOf(waiting, "Progressing");
  CHECK(progressing.reason == "WaitingForWeightSource");
  CHECK(progressing.message ==
        "2 replicas wait for the weights of demo-0 until 2027-01-15T08:00:20Z, then start from "
        "storage");
  REQUIRE(waiting.notes.size() == 1);
  CHECK(waiting.notes[0].reason == "WaitingForWeightSource");

  const Plan later = MakePlan(state.Done(), kNow + seconds(20));
  CHECK(Printed(later) ==
        Lines{"create demo-1 by Storage (Wake: no guards; Peer: no weights to pull yet, demo-0 was "
              "waited for 120 s)",
              "create demo-2 by Storage (Wake: no guards; Peer: no weights to pull yet, demo-0 was "
              "waited for 120 s)"});
}

TEST_CASE("without a fallback replicas wait as long as a source is coming") {
  State state(2);
  state.Fallback(api::Fallback::kNone)
      .Starting("demo-0", StartPath::kStorage, AgentState::kLoading, seconds(100'000));
  state["demo-0"].started_at = kNow - seconds(10);
  const Plan plan = MakePlan(state.Done(), kNow);
  CHECK(plan.actions.empty());
  CHECK(ConditionOf(plan, "Progressing").message == "1 replica waits for the weights of demo-0");
  // It failed: somebody else must load from storage, or nobody ever would.
  state["demo-0"].agent_state = AgentState::kFailed;
  state.Done().service.status.last_failure = kNow;
  state.Done().service.status.consecutive_failures = 1;
  const Plan failed = MakePlan(state.Done(), kNow);
  REQUIRE(failed.actions.size() == 2);
  CHECK(std::get<CreateInstance>(failed.actions[1]).path == StartPath::kStorage);
}

TEST_CASE(
    "targets that wait for a peer are no source that is coming, unless they may help themselves") {
  State none(3);
  none.Fallback(api::Fallback::kNone).Starting("demo-1", StartPath::kPeer, AgentState::kPulling);
  CHECK(Printed(MakePlan(none.Done(), kNow)) ==
        Lines{"create demo-0 by Storage (Wake: no guards; Peer: no instance with this launch "
              "identity has weights or can come by them)"});
  State storage(3);
  storage.Starting("demo-1", StartPath::kPeer, AgentState::kPulling);
  CHECK(MakePlan(storage.Done(), kNow).actions.empty());
}

TEST_CASE("an instance that serves and never publishes its weights is waited for no longer") {
  State state(2);
  state.Fallback(api::Fallback::kNone).Serving("demo-0", "node-a", seconds(600));
  state["demo-0"].weights->servable = false;
  const Plan plan = MakePlan(state.Done(), kNow);
  REQUIRE(plan.actions.size() == 1);
  CHECK(std::get<CreateInstance>(plan.actions[0]).path == StartPath::kStorage);
}

TEST_CASE("with a servable instance all missing replicas start from it at once") {
  const Plan plan = MakePlan(State(3).Serving("demo-0").Done(), kNow);
  CHECK(Printed(plan) == Lines{"create demo-1 by Peer (Wake: no guards)",
                               "create demo-2 by Peer (Wake: no guards)"});
  CHECK_FALSE(plan.replan_after.has_value());
}

TEST_CASE("an instance with weights is a source before it serves") {
  State state(2);
  state.Starting("demo-0", StartPath::kStorage, AgentState::kWarming);
  state["demo-0"].weights = WeightsReport{.servable = true};
  CHECK(Printed(MakePlan(state.Done(), kNow)) == Lines{"create demo-1 by Peer (Wake: no guards)"});
  state["demo-0"].agent_down = true;
  CHECK(MakePlan(state.Done(), kNow).actions.empty());
}

TEST_CASE("only an equal launch identity is a source") {
  State state(2);
  state.Serving("demo-0");
  state["demo-0"].launch_identity = "other";
  CHECK(Printed(MakePlan(state.Done(), kNow)) ==
        Lines{"create demo-1 by Storage (Wake: no guards; Peer: no instance with this launch "
              "identity runs)"});
}

TEST_CASE("with weights.source Storage nobody waits for anybody") {
  const Plan plan = MakePlan(State(2).Source(api::WeightSource::kStorage).Done(), kNow);
  CHECK(Printed(plan) ==
        Lines{"create demo-0 by Storage (Wake: no guards; Peer: weights.source is Storage)",
              "create demo-1 by Storage (Wake: no guards; Peer: weights.source is Storage)"});
}

TEST_CASE("names are the smallest free ones, those of leaving and foreign pods are not free") {
  State state(4);
  state.Serving("demo-1").Serving("demo-2");
  state["demo-2"].deleting = true;
  state.Done().taken_names = {"demo-0"};
  const Plan plan = MakePlan(state.Done(), kNow);
  REQUIRE(plan.actions.size() == 3);
  CHECK(std::get<CreateInstance>(plan.actions[0]).pod == "demo-3");
  CHECK(std::get<CreateInstance>(plan.actions[1]).pod == "demo-4");
  CHECK(std::get<CreateInstance>(plan.actions[2]).pod == "demo-5");
}

TEST_CASE("scale-in takes the least useful instances and never more than are too many") {
  State state(2);
  state.Serving("demo-0", "node-a", seconds(900))
      .Serving("demo-1", "node-a", seconds(800))
      .Serving("demo-2", "node-a", seconds(850))
      .Starting("demo-3", StartPath::kStorage)
      .Pending("demo-4");
  CHECK(Printed(MakePlan(state.Done(), kNow)) ==
        Lines{"delete demo-4 (ScaleIn: it has no node yet)",
              "delete demo-3 (ScaleIn: it does not serve yet)",
              "delete demo-1 (ScaleIn: it is the youngest)"});
}

TEST_CASE("an instance of an older revision goes before a younger one of this revision") {
  State state(1);
  state.Serving("demo-0", "node-a", seconds(900)).Serving("demo-1", "node-a", seconds(100));
  state["demo-0"].revision = "old";
  CHECK(Printed(MakePlan(state.Done(), kNow)) ==
        Lines{"delete demo-0 (ScaleIn: it is of an older revision)"});
}

TEST_CASE("the only weight source stays while another that stays still pulls") {
  State state(1);
  // The source lost its readiness and is the younger one: by rank it would go first.
  state.Serving("demo-0", "node-a", seconds(5))
      .Starting("demo-1", StartPath::kPeer, AgentState::kPulling, seconds(30));
  state["demo-0"].ready = false;
  CHECK(Printed(MakePlan(state.Done(), kNow)) ==
        Lines{"delete demo-1 (ScaleIn: it does not serve yet)"});
}

TEST_CASE("scaling to zero takes everything") {
  const Plan plan = MakePlan(State(0).Serving("demo-0").Serving("demo-1").Done(), kNow);
  CHECK(plan.actions.size() == 2);
  const Plan empty = MakePlan(State(0).Done(), kNow);
  CHECK(empty.actions.empty());
  CHECK(ConditionOf(empty, "Available").reason == "ScaledToZero");
}

TEST_CASE(
    "a failure is counted before the pod is deleted, and the first replacement does not wait") {
  State state(2);
  state.Serving("demo-0").Starting("demo-1", StartPath::kPeer, AgentState::kFailed);
  state["demo-1"].agent_message = "peer demo-0 went away";
  const Plan count = MakePlan(state.Done(), kNow);
  CHECK(count.actions.empty());
  CHECK(count.status.consecutive_failures == 1);
  CHECK(count.status.last_failure == kNow);
  CHECK(count.status.failed == 1);
  CHECK(ConditionOf(count, "Degraded").message ==
        "demo-1 failed: its agent gave up: peer demo-0 went away");
  REQUIRE(count.notes.size() == 2);  // The other one: demo-0 serves.
  CHECK(count.notes[0].warning);
  CHECK(count.notes[0].reason == "InstanceFailed");

  state.Done().service.status = count.status;
  CHECK(Printed(MakePlan(state.Done(), kNow + seconds(1))) ==
        Lines{"delete demo-1 (Failed: its agent gave up: peer demo-0 went away)",
              "create demo-2 by Peer (Wake: no guards)"});
}

TEST_CASE("instances that failed in one wave count as one failure") {
  State state(3);
  state.Serving("demo-0")
      .Starting("demo-1", StartPath::kPeer, AgentState::kFailed)
      .Starting("demo-2", StartPath::kPeer, AgentState::kFailed);
  const Plan both = MakePlan(state.Done(), kNow);
  CHECK(both.status.consecutive_failures == 1);

  state.Done().service.status = both.status;
  state["demo-2"].agent_state = AgentState::kPulling;
  CHECK(MakePlan(state.Done(), kNow + seconds(1)).status.consecutive_failures == 1);
  state["demo-2"].agent_state = AgentState::kFailed;
  const Plan late = MakePlan(state.Done(), kNow + seconds(5));
  CHECK(late.status.consecutive_failures == 1);
  CHECK(late.actions.size() == 4);  // Both go, both are replaced.
}

TEST_CASE("replacements wait longer the more starts fail in a row") {
  struct Row {
    int failures;
    int wait_s;
  };
  const auto row =
      GENERATE(Row{2, 10}, Row{3, 20}, Row{4, 40}, Row{6, 160}, Row{7, 300}, Row{70, 300});
  State state(1);
  state.Done().service.status.consecutive_failures = row.failures;
  state.Done().service.status.last_failure = kNow;
  const Plan wait =
      MakePlan(state.Done(), kNow + seconds(row.wait_s) - std::chrono::milliseconds(5));
  CHECK(wait.actions.empty());
  CHECK(wait.replan_after == std::chrono::milliseconds(5));
  CHECK(ConditionOf(wait, "Progressing").reason == "BackingOff");
  CHECK(MakePlan(state.Done(), kNow + seconds(row.wait_s)).actions.size() == 1);
}

TEST_CASE("an edit of the spec ends the wait, and a success ends the count") {
  State state(2);
  state.Done().service.status.consecutive_failures = 5;
  state.Done().service.status.last_failure = kNow;
  CHECK(MakePlan(state.Done(), kNow).actions.empty());
  state.Done().service.metadata.generation = 4;
  const Plan edited = MakePlan(state.Done(), kNow);
  CHECK(edited.status.consecutive_failures == 0);
  CHECK(edited.actions.size() == 1);

  State recovered(1);
  recovered.Serving("demo-0", "node-a", seconds(60));
  recovered.Done().service.status.consecutive_failures = 5;
  recovered.Done().service.status.last_failure = kNow - seconds(61);
  CHECK(MakePlan(recovered.Done(), kNow).status.consecutive_failures == 0);
  recovered.Done().service.status.last_failure = kNow - seconds(59);
  CHECK(MakePlan(recovered.Done(), kNow).status.consecutive_failures == 5);
}

TEST_CASE("what counts as failed") {
  State state(1);
  state.Starting("demo-0");
  Instance& i = state["demo-0"];
  const Policy policy;
  CHECK(FailureOf(i, policy, kNow).empty());
  SECTION("the pod ended") {
    i.phase = "Failed";
    i.phase_message = "Evicted: no memory";
    CHECK(FailureOf(i, policy, kNow) ==
          "the pod ended (phase Failed): Evicted: no memory; if this repeats, look at node node-a: "
          "kubectl describe node tells what it lacks");
  }
  SECTION("its agent gave up") {
    i.agent_state = AgentState::kFailed;
    CHECK(FailureOf(i, policy, kNow) == "its agent gave up: no reason given; its log says more");
    i.agent_message = "the checkpoint is corrupt: copy it again";
    CHECK(FailureOf(i, policy, kNow) ==
          "its agent gave up: the checkpoint is corrupt: copy it again");
  }
  SECTION("a container crash-loops often enough") {
    i.crash_looping = "engine: exit code 1 (Error)";
    i.restarts = 2;
    CHECK(FailureOf(i, policy, kNow).empty());
    i.restarts = 3;
    CHECK(
        FailureOf(i, policy, kNow) ==
        "container engine: exit code 1 (Error), 3 restarts; its log says why; an edit of the spec "
        "has the next one tried at once");
  }
  SECTION("it did not serve in time, counted from when the kubelet took it") {
    i.started_at = kNow - seconds(3600);
    CHECK(FailureOf(i, policy, kNow) ==
          "did not serve within 3600 s; the logs of its containers say what it waited for; if it "
          "only needs longer, raise the operator's --start-deadline");
    i.started_at = kNow - seconds(3599);
    CHECK(FailureOf(i, policy, kNow).empty());
    i.started_at = std::nullopt;
    i.decided_at = kNow - seconds(100'000);
    i.unschedulable = "0/3 nodes are available";
    CHECK(FailureOf(i, policy, kNow).empty());
  }
  SECTION("one that has served is not failed by losing readiness") {
    i.started_at = kNow - seconds(100'000);
    i.timeline = Timeline{};
    CHECK(FailureOf(i, policy, kNow).empty());
  }
}

TEST_CASE("an unschedulable instance is waited for and reported") {
  State state(1);
  state.Pending("demo-0", seconds(100'000));
  state["demo-0"].unschedulable = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu";
  const Plan plan = MakePlan(state.Done(), kNow);
  CHECK(plan.actions.empty());
  CHECK(ConditionOf(plan, "Progressing").reason == "Unschedulable");
  CHECK(ConditionOf(plan, "Progressing").message ==
        "demo-0 has no node: 0/1 nodes are available: 1 Insufficient nvidia.com/gpu");
  REQUIRE(plan.notes.size() == 1);
  CHECK(plan.notes[0].warning);
}

TEST_CASE("a changed spec replaces serving instances one at a time, others at once") {
  State state(3);
  state.Serving("demo-0").Serving("demo-1").Serving("demo-2");
  for (const char* name : {"demo-0", "demo-1", "demo-2"}) state[name].revision = "old";
  const Plan first = MakePlan(state.Done(), kNow);
  CHECK(Printed(first) == Lines{"delete demo-2 (Outdated: the spec has changed)",
                                "create demo-3 by Peer (Wake: no guards)"});
  state["demo-2"].deleting = true;
  state.Pending("demo-3");
  CHECK(MakePlan(state.Done(), kNow).actions.empty());

  State starting(2);
  starting.Serving("demo-0").Starting("demo-1");
  starting["demo-0"].revision = starting["demo-1"].revision = "old";
  const Plan replaced = MakePlan(starting.Done(), kNow);
  CHECK(Printed(replaced) ==
        Lines{"delete demo-1 (Outdated: the spec has changed, it does not serve yet)",
              "create demo-2 by Peer (Wake: no guards)"});
}

TEST_CASE("a ModelService that is deleted gets nothing new and keeps its status up to date") {
  State state(3);
  state.Serving("demo-0").Starting("demo-1", StartPath::kPeer, AgentState::kFailed);
  state.Done().service.metadata.deleting = true;
  const Plan plan = MakePlan(state.Done(), kNow);
  CHECK(plan.actions.empty());
  CHECK_FALSE(plan.replan_after.has_value());
  CHECK(ConditionOf(plan, "Progressing").reason == "Deleting");
}
