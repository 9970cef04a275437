// Guards: made after replicas, woken before anything is started, put to sleep once nobody sends
// them requests, retired when they cannot be woken.

#include <catch2/catch.hpp>

#include "operator/plan/guards.h"
#include "operator/plan/planner.h"
#include "operator/tests/state.h"

using namespace rouse;
using namespace rouse::plan;
using namespace rouse::plan::testing;
using std::chrono::seconds;

TEST_CASE("guards are made once all replicas are there, from their weights") {
  State state(2, true);
  state.Guards(1).Serving("demo-0");
  CHECK(Printed(MakePlan(state.Done(), kNow)) == Lines{"create demo-1 by Peer (Wake: no guards)"});
  state.Pending("demo-1");
  CHECK(MakePlan(state.Done(), kNow).actions.empty());
  state.Done().instances.pop_back();
  state.Serving("demo-1", "node-b");
  const Plan plan = MakePlan(state.Done(), kNow);
  CHECK(Printed(plan) == Lines{"create guard demo-2 by Peer (Wake: a guard is to be made)"});
  CHECK(std::get<CreateInstance>(plan.actions[0]).near == Lines{"node-a", "node-b"});
  CHECK(ConditionOf(plan, "Progressing").message == "1 guard created");
  CHECK(plan.status.replicas == 2);
  CHECK(plan.status.guards == 0);
}

TEST_CASE("a missing replica is woken, nearest to weights first, and nothing is started") {
  State state(2, true);
  state.Guards(2)
      .Serving("demo-0", "node-b")
      .Guard("demo-1", "node-a", seconds(300))
      .Guard("demo-2", "node-b", seconds(200));
  const Plan plan = MakePlan(state.Done(), kNow);
  REQUIRE(Printed(plan) == Lines{"wake demo-2 (this guard slept; weights of demo-0 (Node))"});
  const auto& claim = std::get<ClaimGuard>(plan.actions[0]);
  CHECK(claim.resource_version == "42");
  CHECK(claim.address == "https://demo-2:7411");
  CHECK(claim.decided_at == kNow);
  REQUIRE(claim.peers.size() == 1);
  CHECK(claim.peers[0].pod == "demo-0");
  CHECK(ConditionOf(plan, "Progressing").message == "woken: demo-2");
}

TEST_CASE("what guards cannot do is started, and says why they could not") {
  State state(3, true);
  state.Guards(1).Serving("demo-0");
  SECTION("there are too few") {
    state.Guard("demo-1");
    CHECK(Printed(MakePlan(state.Done(), kNow)) ==
          Lines{"wake demo-1 (this guard slept; weights of demo-0 (Node))",
                "create demo-2 by Peer (Wake: no other guards)"});
  }
  SECTION("nobody has weights to wake with") {
    state.Guard("demo-1");
    state["demo-0"].weights->servable = false;
    state["demo-0"].timeline.reset();
    state["demo-0"].ready = false;
    state.Fallback(api::Fallback::kNone).Source(api::WeightSource::kStorage);
    CHECK(Printed(MakePlan(state.Done(), kNow))[0] ==
          "create demo-2 by Storage (Wake: no instance has weights for demo-1; Peer: "
          "weights.source is Storage)");
  }
  SECTION("its agent is down") {
    state.Guard("demo-1");
    state["demo-1"].agent_down = true;
    CHECK(Printed(MakePlan(state.Done(), kNow))[0] ==
          "create demo-2 by Peer (Wake: the agent of demo-1 is down)");
  }
  SECTION("it is of another revision: it goes instead") {
    state.Guard("demo-1");
    state["demo-1"].revision = "old";
    CHECK(Printed(MakePlan(state.Done(), kNow)) ==
          Lines{"create demo-2 by Peer (Wake: no guards)",
                "create demo-3 by Peer (Wake: no guards)",
                "delete demo-1 (Outdated: the spec has changed)"});
  }
}

TEST_CASE("who is kept ready to be told is who a scale-out would wake, in that order") {
  State state(1, true);
  state.Guards(5).Serving("demo-0");
  for (const char* name : {"demo-1", "demo-2", "demo-3", "demo-4", "demo-5"}) state.Guard(name);
  state["demo-0"].node = "node-b";
  state["demo-1"].node = "node-c";
  state["demo-1"].decided_at -= seconds(1);
  state["demo-2"].node = "node-b";  // Where the weights are.
  state["demo-3"].agent_state = AgentState::kSleeping;
  state["demo-4"].failed_wakes = {.count = 1, .at = kNow, .reason = "x"};  // Left alone for now.
  state["demo-5"].revision = "of another spec";
  Observed observed = state.Done();
  const auto asleep = [&] {
    Lines names;
    for (const Sleeper& guard : MakePlan(observed, kNow).sleepers) names.push_back(guard.pod);
    return names;
  };
  CHECK(asleep() == Lines{"demo-2", "demo-1"});
  observed.service.spec.replicas = 2;
  CHECK(std::get<ClaimGuard>(MakePlan(observed, kNow).actions.at(0)).pod == "demo-2");
  CHECK(asleep() == Lines{"demo-1"});
}

TEST_CASE("while nobody serves, guards begin without weights, and are taken when they sleep") {
  State state(0, true);
  state.Guards(2);
  const Plan plan = MakePlan(state.Done(), kNow);
  REQUIRE(plan.actions.size() == 2);
  for (const Action& action : plan.actions) {
    const auto& create = std::get<CreateInstance>(action);
    CHECK(create.role == Role::kGuard);
    CHECK(create.begins_without);
    CHECK(create.path_reason.find("nobody serves") != std::string::npos);
  }
  SECTION("not where weights come from storage only, or a replica could use them") {
    state.Source(api::WeightSource::kStorage);
    CHECK_FALSE(
        std::get<CreateInstance>(MakePlan(state.Done(), kNow).actions.at(0)).begins_without);
  }
  SECTION("one that starts is nobody's replica, and nobody waits for its weights") {
    State one(1, true);
    one.Guards(1).Guard("demo-1");
    one["demo-1"].begins_without = true;
    one["demo-1"].agent_state = AgentState::kWarming;
    one["demo-1"].timeline.reset();
    CHECK(
        Printed(MakePlan(one.Done(), kNow)) ==
        Lines{
            "create demo-0 by Storage (Wake: demo-1 starts, and has no weights before it is "
            "woken; Peer: no instance with this launch identity has weights or can come by them)"});
  }
  SECTION("asleep it is a guard as any other") {
    State two(2, true);
    two.Guards(1).Serving("demo-0").Guard("demo-1");
    two["demo-1"].begins_without = true;
    CHECK(Printed(MakePlan(two.Done(), kNow))[0] ==
          "wake demo-1 (this guard slept; weights of demo-0 (Node))");
  }
}

TEST_CASE("a guard that falls asleep is waited for, one that has not yet is taken as it is") {
  State state(2, true);
  state.Guards(1).Serving("demo-0").Guard("demo-1");
  SECTION("it falls asleep") {
    state["demo-1"].agent_state = AgentState::kSleeping;
    const Plan plan = MakePlan(state.Done(), kNow);
    CHECK(plan.actions.empty());
    CHECK(ConditionOf(plan, "Progressing").reason == "WaitingForGuard");
  }
  SECTION("it serves, to be put to sleep") {
    state["demo-1"].agent_state = AgentState::kServing;
    CHECK(Printed(MakePlan(state.Done(), kNow))[0] ==
          "wake demo-1 (this guard had not fallen asleep yet)");
  }
  SECTION("it starts") {
    state["demo-1"].agent_state = AgentState::kLoading;
    state["demo-1"].timeline.reset();
    const Plan plan = MakePlan(state.Done(), kNow);
    CHECK(Printed(plan)[0] == "take demo-1 (this guard was starting already)");
    CHECK_FALSE(std::get<ClaimGuard>(plan.actions[0]).wake);
  }
}

TEST_CASE(
    "a guard that could not be woken is left alone for a while, and retired the second time") {
  State state(2, true);
  state.Guards(1).Serving("demo-0").Guard("demo-1");
  state["demo-1"].failed_wakes = {.count = 1, .at = kNow - seconds(59), .reason = "no answer"};
  CHECK(Printed(MakePlan(state.Done(), kNow)) ==
        Lines{"create demo-2 by Peer (Wake: demo-1 could not be woken: no answer)"});
  CHECK(Printed(MakePlan(state.Done(), kNow + seconds(1)))[0].starts_with("wake demo-1"));
  state["demo-1"].failed_wakes.count = 2;
  CHECK(Printed(MakePlan(state.Done(), kNow + seconds(1))) ==
        Lines{"create demo-2 by Peer (Wake: no guards)",
              "delete demo-1 (Retired: it could not be woken 2 times, the last time: no answer)"});
}

TEST_CASE("a claim has a lease") {
  State state(2, true);
  state.Guards(0).Serving("demo-0").Guard("demo-1");
  Instance& claimed = state["demo-1"];
  claimed.role = Role::kActive;
  claimed.path = StartPath::kWake;
  claimed.decided_at = kNow;
  const Plan plan = MakePlan(state.Done(), kNow + seconds(1));
  CHECK(Printed(plan) == Lines{"demo-1 may serve"});
  CHECK(plan.replan_after == seconds(2));
  CHECK(plan.status.waking == 1);
  CHECK(plan.status.active == 2);
  SECTION("it sleeps on: it is a guard again, and the next path is taken") {
    CHECK(
        Printed(MakePlan(state.Done(), kNow + seconds(150))) ==
        Lines{"release demo-1 (it slept on for 150 s)", "create demo-2 by Peer (Wake: no guards)"});
  }
  SECTION("it has begun to wake and does not come to an end: it has failed") {
    claimed.agent_state = AgentState::kWaking;
    const Plan late = MakePlan(state.Done(), kNow + seconds(150));
    REQUIRE(late.failed_starts.size() == 1);
    CHECK(late.failed_starts[0].path == StartPath::kWake);
    CHECK(late.status.failed == 1);
  }
  SECTION("nobody has heard of it, and the kubelet says that it serves") {
    claimed.agent_state = AgentState::kWaking;
    claimed.ready = claimed.may_serve = true;
    CHECK(MakePlan(state.Done(), kNow + seconds(1000)).actions.empty());
  }
}

TEST_CASE("a claimed guard that sleeps on is told again") {
  State state(2, true);
  state.Guards(0).Serving("demo-0").Guard("demo-1");
  Instance& claimed = state["demo-1"];
  claimed.role = Role::kActive;
  claimed.path = StartPath::kWake;
  claimed.path_reason = "this guard slept";
  claimed.decided_at = kNow;
  claimed.may_serve = true;
  claimed.failed_wakes = {.count = 1, .at = kNow - seconds(100), .reason = "x"};
  const TimePoint later = kNow + seconds(3);
  SECTION("by the same claim, and again after as long") {
    CHECK(MakePlan(state.Done(), later - std::chrono::microseconds(1)).actions.empty());
    const Plan plan = MakePlan(state.Done(), later);
    REQUIRE(Printed(plan) == Lines{"wake demo-1 again (this guard slept)"});
    const auto& claim = std::get<ClaimGuard>(plan.actions[0]);
    CHECK(claim.decided_at == kNow);
    CHECK(claim.resource_version == "42");
    CHECK(claim.failed_wakes == claimed.failed_wakes);
    REQUIRE(claim.peers.size() == 1);
    CHECK(claim.peers[0].pod == "demo-0");
    CHECK(plan.replan_after == seconds(3));
    CHECK(plan.status.waking == 1);
  }
  SECTION("not once it wakes") {
    claimed.agent_state = AgentState::kWaking;
    CHECK(MakePlan(state.Done(), later).actions.empty());
  }
  SECTION("not while nobody has weights for it, or its agent is down") {
    SECTION("weights") {
      state["demo-0"].weights->servable = false;
    }
    SECTION("agent") {
      claimed.agent_down = true;
    }
    CHECK(MakePlan(state.Done(), later).actions.empty());
  }
  SECTION("not if it goes") {
    state.Done().service.spec.replicas = 1;
    CHECK(Printed(MakePlan(state.Done(), later)) ==
          Lines{"delete demo-1 (ScaleIn: it does not serve yet)"});
  }
}

TEST_CASE("a guard that sleeps pulls nothing: the last replica need not stay for it") {
  State state(0, true);
  state.Guards(1).Serving("demo-0").Guard("demo-1");
  // It fell asleep before its first token was counted.
  state["demo-1"].path = StartPath::kPeer;
  state["demo-1"].timeline.reset();
  CHECK(Printed(MakePlan(state.Done(), kNow)) ==
        Lines{"take demo-0 out of service (ScaleIn: it is the youngest)", "demo-0 may not serve"});
}

TEST_CASE("scale-in makes guards of replicas while guards are short, and sends the others away") {
  State state(1, true);
  state.Guards(1)
      .Serving("demo-0", "node-a", seconds(900))
      .Serving("demo-1", "node-a", seconds(800))
      .Serving("demo-2", "node-a", seconds(700));
  CHECK(Printed(MakePlan(state.Done(), kNow)) ==
        Lines{"make a guard of demo-2 (it is the youngest)", "demo-2 may not serve",
              "take demo-1 out of service (ScaleIn: it is the youngest)", "demo-1 may not serve"});
  // They are out of the endpoints once the kubelet says that they are not ready.
  state["demo-2"].role = Role::kGuard;
  state["demo-2"].may_serve = false;
  state["demo-1"].leaving = Leaving{.at = kNow, .cause = Cause::kScaleIn, .reason = "why"};
  state["demo-1"].may_serve = false;
  const Plan still = MakePlan(state.Done(), kNow + seconds(1));
  CHECK(still.actions.empty());
  CHECK(still.replan_after == seconds(29));
  state["demo-1"].ready = state["demo-2"].ready = false;
  CHECK(Printed(MakePlan(state.Done(), kNow + seconds(1))) ==
        Lines{"delete demo-1 (ScaleIn: why)", "put demo-2 to sleep"});
  // A node that is gone says nothing any more.
  state["demo-1"].ready = true;
  CHECK(Printed(MakePlan(state.Done(), kNow + seconds(30)))[0] == "delete demo-1 (ScaleIn: why)");
}

TEST_CASE("a guard that starts gives way to a replica that can become one at once") {
  State state(1, true);
  state.Guards(1).Serving("demo-0").Serving("demo-1").Starting("demo-2", StartPath::kPeer);
  state["demo-2"].role = Role::kGuard;
  state["demo-2"].may_serve = false;
  CHECK(Printed(MakePlan(state.Done(), kNow)) ==
        Lines{"make a guard of demo-1 (it is the youngest)", "demo-1 may not serve",
              "delete demo-2 (ScaleIn: there are more guards than wanted)"});
}

TEST_CASE("the only source of weights does not fall asleep while somebody needs them") {
  State state(0, true);
  state.Guards(2).Serving("demo-0").Starting("demo-1", StartPath::kPeer, AgentState::kPulling);
  for (const char* name : {"demo-0", "demo-1"}) {
    state[name].role = Role::kGuard;
    state[name].ready = state[name].may_serve = false;
  }
  CHECK(MakePlan(state.Done(), kNow).actions.empty());
  state["demo-1"].agent_state = AgentState::kServing;
  CHECK(Printed(MakePlan(state.Done(), kNow)) ==
        Lines{"put demo-0 to sleep", "put demo-1 to sleep"});
}

TEST_CASE("with no replicas guards are kept, and the next replica loads from storage") {
  State state(0, true);
  state.Guards(1).Guard("demo-0");
  CHECK(MakePlan(state.Done(), kNow).actions.empty());
  CHECK(MakePlan(state.Done(), kNow).status.guards == 1);
  state.Done().service.spec.replicas = 1;
  CHECK(Printed(MakePlan(state.Done(), kNow)) ==
        Lines{"create demo-1 by Storage (Wake: no instance has weights for demo-0; Peer: no "
              "instance with this launch identity has weights or can come by them)"});
}

TEST_CASE("guards that fail hold up no replica") {
  State state(2, true);
  state.Guards(1).Serving("demo-0").Starting("demo-1", StartPath::kPeer, AgentState::kFailed);
  state["demo-1"].role = Role::kGuard;
  state.Done().service.status.consecutive_guard_failures = 5;
  state.Done().service.status.last_guard_failure = kNow - seconds(1);
  state["demo-1"].decided_at = kNow - seconds(2);  // Counted already.
  const Plan plan = MakePlan(state.Done(), kNow);
  CHECK(Printed(plan)[1] == "create demo-2 by Peer (Wake: no guards)");
  CHECK(plan.status.consecutive_guard_failures == 5);
  CHECK(plan.status.consecutive_failures == 0);
  CHECK(plan.actions.size() == 2);  // The next guard waits.
  CHECK(plan.status.failed == 0);
}

TEST_CASE("who may be sent requests is said of replicas alone") {
  State state(1, true);
  state.Guards(1).Serving("demo-0").Guard("demo-1");
  state["demo-0"].may_serve = false;
  state["demo-1"].may_serve = true;
  CHECK(Printed(MakePlan(state.Done(), kNow)) == Lines{"demo-0 may serve", "demo-1 may not serve"});
}

TEST_CASE("a woken guard's wake is a scale-out, its start is not") {
  State state(2, true);
  state.Guards(0).Serving("demo-0").Guard("demo-1");
  Instance& guard = state["demo-1"];
  CHECK(MakePlan(state.Done(), kNow).status.scale_outs.size() == 1);
  guard.role = Role::kActive;
  guard.path = StartPath::kWake;
  guard.path_reason = "this guard slept";
  guard.decided_at = kNow;
  guard.agent_state = AgentState::kWaking;
  CHECK(MakePlan(state.Done(), kNow).new_scale_outs.size() == 1);  // demo-0's
  guard.agent_state = AgentState::kServing;
  guard.timeline = Timeline{.path = StartPath::kWake,
                            .decided_at_us = kNowUs,
                            .phases = {{"Command", 0, 50'000}},
                            .lanes = {},
                            .total_us = 50'000};
  const Plan plan = MakePlan(state.Done(), kNow + seconds(1));
  REQUIRE(plan.status.scale_outs.size() == 2);
  CHECK(plan.status.scale_outs[0].pod == "demo-1");
  CHECK(plan.status.scale_outs[0].path == "Wake");
  CHECK(plan.status.scale_outs[0].reason == "this guard slept");
  CHECK(plan.status.scale_outs[0].seconds == Approx(0.05));
}

TEST_CASE("marks on pods that nobody of us can have written read as not there") {
  for (const char* text : {"", "{", "[]", R"({"atUs":-1,"cause":"ScaleIn","reason":""})",
                           R"({"atUs":1,"cause":"Whim","reason":""})", R"({"atUs":"1"})"}) {
    CHECK_FALSE(LeavingFromText(text).has_value());
    CHECK_FALSE(FailedWakesFromText(text).has_value());
  }
  const Leaving leaving{.at = kNow, .cause = Cause::kRetired, .reason = "why"};
  CHECK(LeavingFromText(json::Canonical(ToJson(leaving))) == leaving);
  const FailedWakes wakes{.count = 2, .at = kNow, .reason = "why"};
  CHECK(FailedWakesFromText(json::Canonical(ToJson(wakes))) == wakes);
}

TEST_CASE("a rollout replaces guards first, and a replica once a guard can take its place") {
  State state(2, true);
  state.Guards(1).Serving("demo-0").Serving("demo-1").Guard("demo-2");
  state.Done().service.spec.engine.image = "vllm:2";
  CHECK(Printed(MakePlan(state.Done(), kNow)) ==
        Lines{"delete demo-2 (Outdated: the spec has changed)",
              "create guard demo-3 by Storage (Wake: a guard is to be made; Peer: no instance with "
              "this launch identity runs)"});
  state.Done().instances.pop_back();
  state.Starting("demo-3", StartPath::kStorage, AgentState::kLoading);
  state["demo-3"].role = Role::kGuard;
  state["demo-3"].may_serve = false;
  CHECK(MakePlan(state.Done(), kNow).actions.empty());
  // It has the weights that the others need, and is not put to sleep meanwhile.
  state.Done().instances.pop_back();
  state.Guard("demo-3");
  state["demo-3"].agent_state = AgentState::kServing;
  CHECK(Printed(MakePlan(state.Done(), kNow)) ==
        Lines{"take demo-1 out of service (Outdated: the spec has changed)", "demo-1 may not serve",
              "wake demo-3 (this guard had not fallen asleep yet)"});
}

TEST_CASE("a rollout has as many more and as few serving as it may") {
  State state(3, true);
  state.Serving("demo-0").Serving("demo-1").Serving("demo-2");
  api::Spec& spec = state.Done().service.spec;
  spec.engine.image = "vllm:2";
  spec.max_surge = 1;
  spec.max_unavailable = 0;
  CHECK(Printed(MakePlan(state.Done(), kNow)).size() == 1);  // One more, nobody goes.
  state.Serving("demo-3");
  CHECK(Printed(MakePlan(state.Done(), kNow)) ==
        Lines{"take demo-2 out of service (Outdated: the spec has changed)", "demo-2 may not serve",
              "create demo-4 by Peer (Wake: no guards)"});
  spec.max_unavailable = 2;
  state.Done().instances.pop_back();
  const Plan plan = MakePlan(state.Done(), kNow);
  CHECK(std::count_if(plan.actions.begin(), plan.actions.end(), [](const Action& action) {
          return std::holds_alternative<Leave>(action);
        }) == 2);
}
