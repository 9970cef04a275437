#include <algorithm>
#include <catch2/catch.hpp>
#include <map>

#include "operator/actuate/cache.h"
#include "operator/plan/node.h"
#include "operator/plan/planner.h"
#include "operator/tests/state.h"

using namespace rouse;
using namespace rouse::plan;
using namespace rouse::plan::testing;
using std::chrono::seconds;

namespace {

Json NodeJson(const std::string& name, const std::string& ready) {
  return {{"metadata", {{"name", name}}},
          {"status",
           {{"conditions",
             {{{"type", "MemoryPressure"}, {"status", "False"}},
              {{"type", "Ready"}, {"status", ready}}}}}}};
}

Json PodJson(const std::string& service, const std::string& name, const std::string& node) {
  return {{"metadata",
           {{"name", name},
            {"namespace", "default"},
            {"uid", "uid-" + name},
            {"labels", {{"rouse.dev/modelservice", service}}}}},
          {"spec", {{"nodeName", node}}}};
}

/// A cache with nodes and pods, and the ModelServices that it said had changed.
struct CachedNodes {
  std::map<std::string, int> changed;
  actuate::Cache cache{[this](const std::string& key) { ++changed[key]; },
                       [](const Instance*, const Instance*) {}};

  void Put(kube::StoreSink& sink, Json object) {
    sink.Take({.kind = kube::StoreEvent::Kind::kApply, .object = std::move(object)});
  }
  void Node(const std::string& name, const std::string& ready) {
    Put(cache.node_sink(), NodeJson(name, ready));
  }
  bool Lost(const std::string& service, const std::string& pod) const {
    for (const auto& instance : cache.PodsOf("default/" + service)) {
      if (instance->name == pod) return instance->node_lost;
    }
    FAIL("no pod " << pod);
    return false;
  }
};

}  // namespace

TEST_CASE(
    "a node is lost when it is not ready or nothing is heard of it, and not while it is new") {
  CHECK_FALSE(NodeFromObject(NodeJson("a", "True")).lost);
  CHECK(NodeFromObject(NodeJson("a", "False")).lost);
  CHECK(NodeFromObject(NodeJson("a", "Unknown")).lost);
  CHECK_FALSE(NodeFromObject(Json::parse(R"({"metadata": {"name": "a"}})")).lost);
  CHECK_FALSE(NodeFromObject(Json::parse(R"({"status": {"conditions": [3, {"type": 4}]}})")).lost);
  CHECK_FALSE(NodeFromObject(Json("nonsense")).lost);
}

TEST_CASE("nodes are not believed lost when all are, or most of more than two") {
  CHECK_FALSE(CanBeLost(1, 1));
  CHECK(CanBeLost(1, 2));
  CHECK_FALSE(CanBeLost(2, 2));
  CHECK(CanBeLost(2, 3));
  CHECK_FALSE(CanBeLost(3, 5));
  CHECK(CanBeLost(3, 6));
  CHECK(CanBeLost(54, 100));
  CHECK_FALSE(CanBeLost(55, 100));
}

TEST_CASE("the pods of a lost node are, and their ModelServices are looked at") {
  CachedNodes world;
  for (const char* name : {"a", "b", "c"}) world.Node(name, "True");
  world.Put(world.cache.pod_sink(), PodJson("one", "one-0", "a"));
  world.Put(world.cache.pod_sink(), PodJson("one", "one-1", "b"));
  world.Put(world.cache.pod_sink(), PodJson("two", "two-0", "b"));
  world.changed.clear();
  world.Node("a", "True");  // A heartbeat.
  CHECK(world.changed.empty());

  world.Node("a", "Unknown");
  CHECK(world.changed == std::map<std::string, int>{{"default/one", 1}});
  CHECK(world.Lost("one", "one-0"));
  CHECK_FALSE(world.Lost("one", "one-1"));
  CHECK(world.cache.lost_node_count() == 1);
  CHECK_FALSE(world.cache.Pod("default/one-0")->node_lost);  // It says so itself.

  world.Node("b", "False");
  CHECK(world.Lost("two", "two-0"));
  world.changed.clear();
  world.Node("c", "False");  // All of them: nobody believes it.
  CHECK(world.changed == std::map<std::string, int>{{"default/one", 1}, {"default/two", 1}});
  CHECK_FALSE(world.Lost("one", "one-0"));
  CHECK_FALSE(world.Lost("two", "two-0"));

  for (const char* name : {"a", "b", "c"}) world.Node(name, "True");
  CHECK_FALSE(world.Lost("one", "one-0"));
  CHECK(world.cache.lost_node_count() == 0);
}

TEST_CASE("what a full list of the nodes says counts as what a watch says does") {
  CachedNodes world;
  world.Put(world.cache.pod_sink(), PodJson("one", "one-0", "a"));
  world.Node("a", "Unknown");
  world.Node("b", "True");
  CHECK(world.Lost("one", "one-0"));
  using Kind = kube::StoreEvent::Kind;
  kube::StoreSink& nodes = world.cache.node_sink();
  nodes.Take({.kind = Kind::kInitBegin, .object = {}});
  nodes.Take({.kind = Kind::kInitApply, .object = NodeJson("b", "True")});
  nodes.Take({.kind = Kind::kInitDone, .object = {}});
  CHECK(world.cache.lost_node_count() == 0);
  CHECK_FALSE(world.Lost("one", "one-0"));
}

TEST_CASE("an instance on a lost node is replaced at once, is no source, and is not deleted") {
  State state(2);
  state.Serving("demo-0", "node-a").Serving("demo-1", "node-b");
  state["demo-0"].node_lost = true;
  state["demo-0"].ready = false;
  const Plan plan = MakePlan(state.Done(), kNow);
  CHECK(Printed(plan) == Lines{"create demo-2 by Peer (Wake: no guards)"});
  CHECK(std::get<CreateInstance>(plan.actions[0]).near == std::vector<std::string>{"node-b"});
  CHECK(plan.status.replicas == 1);
  const auto* degraded = api::FindCondition(plan.status.conditions, "Degraded");
  REQUIRE(degraded != nullptr);
  CHECK(degraded->reason == "NodeLost");
  CHECK(degraded->message ==
        "demo-0 is on node node-a, which is not ready: another instance takes its place until the "
        "node is back");
  const auto told = [](const Plan& of) {
    return std::count_if(of.notes.begin(), of.notes.end(), [](const Note& note) {
      return note.reason == "NodeLost" && note.warning;
    });
  };
  CHECK(told(plan) == 1);

  state.Done().service.status = plan.status;
  CHECK(told(MakePlan(state.Done(), kNow)) == 0);
}

TEST_CASE("with the only source lost the next one loads from storage") {
  State state(1);
  state.Serving("demo-0");
  state["demo-0"].node_lost = true;
  CHECK(Printed(MakePlan(state.Done(), kNow)) ==
        Lines{"create demo-1 by Storage (Wake: no guards; Peer: no other instance runs)"});
}

TEST_CASE("a guard elsewhere takes the place of an instance on a lost node") {
  State state(2, true);
  state.Guards(1).Serving("demo-0", "node-a").Serving("demo-1", "node-b").Guard("demo-2", "node-b");
  state["demo-0"].node_lost = true;
  const Plan plan = MakePlan(state.Done(), kNow);
  REQUIRE_FALSE(plan.actions.empty());
  const auto* claim = std::get_if<ClaimGuard>(&plan.actions[0]);
  REQUIRE(claim != nullptr);
  CHECK(claim->pod == "demo-2");
  REQUIRE(claim->peers.size() == 1);
  CHECK(claim->peers[0].pod == "demo-1");
}

TEST_CASE("a guard on a lost node is not woken, and another one is made") {
  State state(1, true);
  state.Guards(1).Serving("demo-0", "node-b").Guard("demo-1", "node-a");
  state["demo-1"].node_lost = true;
  const Plan made = MakePlan(state.Done(), kNow);
  REQUIRE(made.actions.size() == 1);
  CHECK(std::get<CreateInstance>(made.actions[0]).role == Role::kGuard);
  CHECK(made.status.guards == 0);

  state.Done().service.spec.replicas = 2;
  const Plan woken = MakePlan(state.Done(), kNow);
  REQUIRE_FALSE(woken.actions.empty());
  CHECK(std::get<CreateInstance>(woken.actions[0]).role == Role::kActive);
}

TEST_CASE("when the node is back one instance too many goes, the youngest") {
  State state(2, true);
  state.Serving("demo-0", "node-a", seconds(900))
      .Serving("demo-1", "node-b", seconds(800))
      .Serving("demo-2", "node-c", seconds(60));
  const Plan plan = MakePlan(state.Done(), kNow);
  REQUIRE_FALSE(plan.actions.empty());
  CHECK(std::get<Leave>(plan.actions[0]).pod == "demo-2");
}
