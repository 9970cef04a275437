#include <catch2/catch.hpp>
#include <map>
#include <set>

#include "operator/plan/planner.h"
#include "operator/plan/source.h"
#include "operator/tests/state.h"

using namespace rouse;
using namespace rouse::plan;
using namespace rouse::plan::testing;
using std::chrono::seconds;

namespace {

const api::Condition& ConditionOf(const Plan& plan, const char* type) {
  const api::Condition* condition = api::FindCondition(plan.status.conditions, type);
  REQUIRE(condition != nullptr);
  return *condition;
}

}  // namespace

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

TEST_CASE("each wake of an instance is recorded once, beside its start") {
  State state(1);
  state.Serving("demo-0");
  state.Done().service.status = MakePlan(state.Done(), kNow).status;
  for (int wake = 1; wake <= 2; ++wake) {
    const std::int64_t decided = api::ToMicros(kNow) + wake * 1'000'000;
    state["demo-0"].timeline =
        Timeline{.path = StartPath::kWake,
                 .decided_at_us = decided,
                 .phases = {{"Command", 0, 20'000}, {"Canary", 20'000, 100'000}},
                 .lanes = {},
                 .total_us = 100'000};
    const Plan plan = MakePlan(state.Done(), kNow + seconds(10));
    REQUIRE(plan.new_scale_outs.size() == 1);
    CHECK(plan.new_scale_outs[0].path == "Wake");
    CHECK(plan.new_scale_outs[0].seconds == 0.1);
    CHECK(plan.new_scale_outs[0].finished_at == api::FromMicros(decided + 100'000));
    CHECK(plan.status.scale_outs.size() == static_cast<std::size_t>(wake + 1));
    state.Done().service.status = plan.status;
    CHECK(MakePlan(state.Done(), kNow + seconds(20)).new_scale_outs.empty());
  }
}

TEST_CASE("a start that reached its first token is recorded once") {
  State state(1);
  state.Serving("demo-0");
  const Plan plan = MakePlan(state.Done(), kNow);
  REQUIRE(plan.status.scale_outs.size() == 1);
  const api::ScaleOut& s = plan.status.scale_outs[0];
  CHECK(s.pod == "demo-0");
  CHECK(s.uid == "uid-demo-0");
  CHECK(s.seconds == 3.5);
  CHECK(s.phases == std::vector<api::PhaseSeconds>{{"Schedule", 1.0}, {"Hydrate", 2.5}});
  CHECK(s.bytes_by_source.at("storage") == 1000);
  CHECK(plan.new_scale_outs == plan.status.scale_outs);
  REQUIRE(plan.notes.size() == 1);
  CHECK(plan.notes[0].reason == "InstanceServes");

  state.Done().service.status = plan.status;
  const Plan again = MakePlan(state.Done(), kNow + seconds(60));
  CHECK(again.new_scale_outs.empty());
  CHECK(again.notes.empty());
  CHECK(again.status == plan.status);
}

TEST_CASE("the last ten scale-outs are kept, and one that fell off does not come back") {
  State state(12);
  for (int i = 0; i < 12; ++i) {
    state.Serving("demo-" + std::to_string(i), "node-a", seconds(600 + i));
  }
  const Plan plan = MakePlan(state.Done(), kNow);
  REQUIRE(plan.status.scale_outs.size() == 10);
  CHECK(plan.status.scale_outs.front().pod == "demo-0");
  CHECK(plan.status.scale_outs.back().pod == "demo-9");
  state.Done().service.status = plan.status;
  CHECK(MakePlan(state.Done(), kNow).new_scale_outs.empty());
}

TEST_CASE("the status counts what exists") {
  State state(3);
  state.Serving("demo-0").Starting("demo-1").Starting("demo-2", StartPath::kPeer,
                                                      AgentState::kFailed);
  state.Serving("demo-3");
  state["demo-3"].deleting = true;
  const api::ServiceStatus status = MakePlan(state.Done(), kNow).status;
  CHECK(status.observed_generation == 3);
  CHECK(status.desired == 3);
  CHECK(status.replicas == 3);
  CHECK(status.active == 2);
  CHECK(status.ready == 1);
  CHECK(status.failed == 1);
  CHECK(status.selector == "rouse.dev/modelservice=demo,rouse.dev/role=Active");
}

TEST_CASE("peers are offered from the same node first, then ready ones") {
  State state(5);
  state.Serving("demo-0", "node-b").Serving("demo-1", "node-a").Serving("demo-2", "node-a");
  state.Serving("demo-3", "node-b").Serving("demo-4", "node-b").Serving("demo-5", "node-a");
  state["demo-1"].ready = false;
  state["demo-3"].weights->servable = false;
  state["demo-4"].launch_identity = "other";
  state["demo-5"].owner_uid = "another-service";
  Instance target = state.Pod("demo-9", seconds(1));
  target.node = "node-a";
  std::vector<const Instance*> all;
  for (const Instance& i : state.Done().instances) all.push_back(&i);
  const auto names = [&] {
    Lines out;
    for (const Peer& peer : PeersFor(target, all)) out.push_back(peer.pod);
    return out;
  };
  CHECK(names() == Lines{"demo-2", "demo-1", "demo-0"});
  target.node = "node-c";
  CHECK(names().back() == "demo-1");
  target.uid = "uid-demo-2";
  CHECK(names() == Lines{"demo-0", "demo-1"});
}

TEST_CASE("a target expects weights only of those that have them, or get them without it") {
  const auto expects = [](State& state, const std::string& name) {
    std::vector<const Instance*> all;
    for (const Instance& i : state.Done().instances) all.push_back(&i);
    return IsExpecting(state[name], all, Policy{}, kNow);
  };
  State state(3);
  state.Starting("demo-1", StartPath::kPeer, AgentState::kPulling, seconds(20));
  CHECK_FALSE(expects(state, "demo-1"));  // Itself does not count.
  state.Starting("demo-2", StartPath::kPeer, AgentState::kPulling, seconds(10));
  // Two that wait for peers: the later one for the earlier one, and not the other way round.
  CHECK_FALSE(expects(state, "demo-1"));
  CHECK(expects(state, "demo-2"));
  SECTION("one that has fallen back") {
    state["demo-2"].agent_state = AgentState::kLoading;
    CHECK(expects(state, "demo-1"));
  }
  SECTION("one that starts from storage") {
    state.Starting("demo-3", StartPath::kStorage, AgentState::kReady, seconds(1));
    CHECK(expects(state, "demo-1"));
    state["demo-3"].agent_state = AgentState::kFailed;
    CHECK_FALSE(expects(state, "demo-1"));
  }
  SECTION("one that serves, until its weights are gone") {
    state.Serving("demo-0");
    CHECK(expects(state, "demo-1"));
    state["demo-0"].weights.reset();
    CHECK_FALSE(expects(state, "demo-1"));
    state["demo-0"].timeline->total_us = 590'000'000;  // It may just not have published yet.
    CHECK(expects(state, "demo-1"));
    state["demo-0"].deleting = true;
    CHECK_FALSE(expects(state, "demo-1"));
  }
  SECTION("one of another launch") {
    state.Serving("demo-0");
    state["demo-0"].launch_identity = "other";
    CHECK_FALSE(expects(state, "demo-1"));
  }
}

TEST_CASE(
    "weights that came over TCP past RDMA are a condition and one event, until it is mended") {
  State state(2);
  state.Serving("demo-0").Serving("demo-1");
  CHECK(ConditionOf(MakePlan(state.Done(), kNow), "Degraded").status == "False");
  state["demo-1"].transport_fallback = "weights came over tcp/eth0 although this node has mlx5_0:1";
  const Plan plan = MakePlan(state.Done(), kNow);
  CHECK(ConditionOf(plan, "Degraded").status == "True");
  CHECK(ConditionOf(plan, "Degraded").reason == "TransportFallback");
  CHECK(ConditionOf(plan, "Degraded").message ==
        "demo-1: weights came over tcp/eth0 although this node has mlx5_0:1");
  CHECK(plan.actions.empty());  // it serves: nothing is replaced for that
  const auto told = [](const Plan& after) {
    return std::count_if(after.notes.begin(), after.notes.end(), [](const Note& note) {
      return note.warning && note.reason == "TransportFallback";
    });
  };
  CHECK(told(plan) == 1);

  state.Done().service.status = plan.status;
  CHECK(told(MakePlan(state.Done(), kNow)) == 0);
  state["demo-0"].transport_fallback = "the same here";
  const Plan both = MakePlan(state.Done(), kNow);
  CHECK(ConditionOf(both, "Degraded").message == "demo-0: the same here (and 1 more instance)");

  // A failed start is the worse news.
  state["demo-1"].agent_state = AgentState::kFailed;
  state["demo-1"].ready = false;
  CHECK(ConditionOf(MakePlan(state.Done(), kNow), "Degraded").reason == "InstancesFail");

  state["demo-0"].transport_fallback.clear();
  state["demo-1"] = State(2).Serving("demo-1")["demo-1"];
  CHECK(ConditionOf(MakePlan(state.Done(), kNow), "Degraded").status == "False");
}

TEST_CASE("installed compile caches that were not used are a condition and one event") {
  State state(2);
  state.Serving("demo-0").Serving("demo-1");
  const Plan well = MakePlan(state.Done(), kNow);
  CHECK(ConditionOf(well, "StateReuse").status == "True");
  state["demo-1"].state_miss = "aot_compile missed: env.VLLM_PLUGINS";
  const Plan plan = MakePlan(state.Done(), kNow);
  CHECK(ConditionOf(plan, "StateReuse").status == "False");
  CHECK(ConditionOf(plan, "StateReuse").reason == "CachesNotUsed");
  CHECK(ConditionOf(plan, "StateReuse").message == "demo-1: aot_compile missed: env.VLLM_PLUGINS");
  CHECK(ConditionOf(plan, "Degraded").status == "False");
  const auto told = [](const Plan& after, const std::string& reason) {
    return std::count_if(after.notes.begin(), after.notes.end(),
                         [&](const Note& note) { return note.warning && note.reason == reason; });
  };
  CHECK(told(plan, "CachesNotUsed") == 1);
  state.Done().service.status = plan.status;
  CHECK(told(MakePlan(state.Done(), kNow), "CachesNotUsed") == 0);

  // The cause is in the spec: that is what has to be said.
  state.Done().service.spec.engine.env = Json::parse(
      R"([{"name": "VLLM_PLUGINS", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}])");
  const Plan broken = MakePlan(state.Done(), kNow);
  CHECK(ConditionOf(broken, "StateReuse").reason == "PerPodVariable");
  CHECK(ConditionOf(broken, "StateReuse").message.find("VLLM_PLUGINS") != std::string::npos);
  CHECK(told(broken, "PerPodVariable") == 1);
  state.Done().service.spec.fast_start.state_reuse = false;
  CHECK(ConditionOf(MakePlan(state.Done(), kNow), "StateReuse").reason == "SwitchedOff");
}

TEST_CASE("siblings are all of the launch that run or start, whatever they hold, nearest first") {
  State state(6);
  state.Starting("target");
  state.Starting("same-node", StartPath::kStorage, AgentState::kStarting);
  state.Serving("far", "node-z");
  state.Starting("silent");
  state["silent"].address.clear();
  state["silent"].node = "node-y";
  state.Pending("no-node");
  for (const char* name : {"failed", "deleted", "other-launch", "down"}) state.Serving(name);
  state["failed"].agent_state = AgentState::kFailed;
  state["deleted"].deleting = true;
  state["other-launch"].launch_identity = "other";
  state["down"].agent_down = true;
  std::vector<const Instance*> others;
  for (const Instance& instance : state.Done().instances) others.push_back(&instance);
  const auto siblings = SiblingsOf(state["target"], others);
  REQUIRE(siblings.size() == 3);
  CHECK(siblings[0].pod == "same-node");
  CHECK(siblings[0].address == "https://10.0.0.1:7411");
  CHECK(siblings[0].decided_at_us == kNowUs - 10'000'000);
  CHECK(siblings[1].pod == "far");  // It serves.
  CHECK(siblings[2].pod == "silent");
  CHECK(siblings[2].address.empty());
}

TEST_CASE("of many that start together all know the ones that were decided first") {
  State state(200);
  for (int i = 0; i < 200; ++i) {
    state.Starting("demo-" + std::to_string(i), StartPath::kStorage, AgentState::kHydrating,
                   std::chrono::seconds(10 + i));
    state["demo-" + std::to_string(i)].node = "node-" + std::to_string(i % 50);
  }
  std::vector<const Instance*> all;
  for (const Instance& instance : state.Done().instances) all.push_back(&instance);
  for (const Instance* target : all) {
    const auto siblings = SiblingsOf(*target, all);
    CHECK(siblings.size() == 64);
    std::set<std::string> names;
    for (const Sibling& sibling : siblings) names.insert(sibling.pod);
    CHECK(names.size() == 64);
    for (int i = 192; i < 200; ++i) {
      const std::string early = "demo-" + std::to_string(i);
      if (target->name != early) CHECK(names.contains(early));
    }
  }
}

TEST_CASE("keepers are all that have a store and can be reached, those that go marked") {
  State state(6);
  for (const char* name : {"here", "asleep", "leaving", "deleted", "failed"}) state.Serving(name);
  for (const char* name : {"lost", "down", "no-store", "ended", "stranger"}) state.Serving(name);
  state.Starting("silent");
  for (Instance& instance : state.Done().instances) instance.keeps_caches = true;
  state["asleep"].agent_state = AgentState::kAsleep;
  state["leaving"].leaving = Leaving{};
  state["deleted"].deleting = true;
  state["failed"].agent_state = AgentState::kFailed;
  state["lost"].node_lost = true;
  state["down"].agent_down = true;
  state["no-store"].keeps_caches = false;
  state["ended"].phase = "Failed";
  state["stranger"].owner_uid.clear();
  state["silent"].address.clear();
  state["here"].service = "another";
  std::vector<const Instance*> all;
  for (const Instance& instance : state.Done().instances) all.push_back(&instance);
  std::map<std::string, bool> leaving;
  for (const Keeper& keeper : KeepersOf(all)) leaving[keeper.pod] = keeper.leaving;
  CHECK(leaving == std::map<std::string, bool>{{"here", false},
                                               {"asleep", false},
                                               {"leaving", true},
                                               {"deleted", true},
                                               {"failed", true}});
}

TEST_CASE("of more keepers than are named, one more or less changes one") {
  State state(1);
  for (int i = 0; i < 400; ++i) {
    state.Serving("demo-" + std::to_string(i));
    state["demo-" + std::to_string(i)].keeps_caches = true;
  }
  std::vector<const Instance*> all;
  for (const Instance& instance : state.Done().instances) all.push_back(&instance);
  const auto named = KeepersOf(all);
  REQUIRE(named.size() == kMaxKeepers);
  std::erase_if(all, [&](const Instance* i) { return i->name == named[7].pod; });
  auto after = KeepersOf(all);
  REQUIRE(after.size() == kMaxKeepers);
  after.pop_back();
  auto expected = named;
  expected.erase(expected.begin() + 7);
  CHECK(after == expected);
}

TEST_CASE("peers that still pull are offered too, nearest first, behind one that has everything") {
  State state(6);
  state.Serving("far", "node-z");
  for (const char* name : {"same-node", "same-rack", "same-zone", "elsewhere", "empty", "failed"}) {
    state.Starting(name, StartPath::kPeer, AgentState::kPulling);
    state[name].node = std::string("node-of-") + name;
    state[name].zone = "z1";
    state[name].weights = WeightsReport{.bytes = 1000, .ranks = 1, .arriving = true};
  }
  state["same-node"].node = "node-a";
  state["same-rack"].rack = "r1";
  state["elsewhere"].zone = "z2";
  state["elsewhere"].rack = "r1";  // of another zone: another rack
  state["empty"].weights.reset();
  state["failed"].agent_state = AgentState::kFailed;
  Instance target = state.Pod("target", seconds(1));
  target.node = "node-a";
  target.rack = "r1";
  target.zone = "z1";
  std::vector<const Instance*> all;
  for (const Instance& i : state.Done().instances) all.push_back(&i);
  const std::vector<Peer> peers = PeersFor(target, all);
  Lines said;
  for (const Peer& peer : peers) {
    said.push_back(peer.pod + (peer.partial ? " partial " : " complete ") +
                   std::string(json::NameOf<Distance>(peer.distance, kDistances)));
  }
  CHECK(said == Lines{"far complete Farther", "same-node partial Node", "same-rack partial Rack",
                      "same-zone partial Zone", "elsewhere partial Farther"});
}

TEST_CASE("targets are sent to different peers, and never to more than an answer holds") {
  State state(200);
  for (int i = 0; i < 100; ++i) {
    const std::string name = "demo-" + std::to_string(i);
    state.Starting(name, StartPath::kPeer, AgentState::kPulling);
    state[name].node = "node-" + std::to_string(i);
    state[name].weights = WeightsReport{.bytes = 1000, .ranks = 1, .arriving = true};
  }
  state.Serving("demo-100", "node-s");
  std::vector<const Instance*> all;
  for (const Instance& i : state.Done().instances) all.push_back(&i);
  std::map<std::string, int> asked;
  for (const Instance* target : all) {
    const std::vector<Peer> peers = PeersFor(*target, all);
    CHECK(peers.size() == 64);
    if (target->name != "demo-100") CHECK(peers.front().pod == "demo-100");
    for (std::size_t i = 1; i < 8; ++i) ++asked[peers[i].pod];
  }
  for (const auto& [name, count] : asked) {
    INFO(name);
    CHECK(count < 25);  // 7 on average
  }
}

TEST_CASE("a spec that cannot be read is told in the status, the rest of which stays") {
  api::ServiceStatus before = MakePlan(State(1).Serving("demo-0").Done(), kNow).status;
  const api::ServiceStatus after =
      InvalidSpecStatus(before, 4, "spec.replicas: expected a number", kNow);
  CHECK(after.observed_generation == 4);
  CHECK(after.ready == before.ready);
  const api::Condition* degraded = api::FindCondition(after.conditions, "Degraded");
  REQUIRE(degraded != nullptr);
  CHECK(degraded->status == "True");
  CHECK(degraded->reason == "InvalidSpec");
  CHECK(degraded->message == "spec.replicas: expected a number");
}
