// What the planner writes into the status of a ModelService.

#include <catch2/catch.hpp>

#include "operator/plan/planner.h"
#include "operator/tests/state.h"

using namespace rouse;
using namespace rouse::plan;
using namespace rouse::plan::testing;
using std::chrono::seconds;

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
