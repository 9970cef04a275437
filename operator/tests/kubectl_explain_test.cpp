#include <catch2/catch.hpp>

#include "operator/kubectl/explain.h"
#include "operator/plan/observe.h"
#include "operator/tests/kubectl_world.h"

using namespace rouse;
using namespace rouse::kubectl;
using namespace rouse::kubectl::testing;

namespace {

Json Event(const std::string& kind, const std::string& name, const std::string& uid,
           const std::string& reason, std::int64_t age, const std::string& note) {
  return {{"regarding", {{"kind", kind}, {"name", name}, {"uid", uid}}},
          {"type", reason == "FailedMount" ? "Warning" : "Normal"},
          {"reason", reason},
          {"note", note},
          {"eventTime", api::FormatMicros(kNow - std::chrono::seconds(age))}};
}

}  // namespace

TEST_CASE("a path's reason is taken apart into what was not taken, and why", "[kubectl]") {
  const PathReason storage = ReadPathReason("Wake: no guards; Peer: weights.source is Storage");
  REQUIRE(storage.not_taken.size() == 2);
  CHECK(storage.not_taken[0].path == "Wake");
  CHECK(storage.not_taken[0].why == "no guards");
  CHECK(storage.not_taken[1].path == "Peer");
  CHECK(storage.not_taken[1].why == "weights.source is Storage");
  CHECK(storage.taken.empty());

  // What agents have said of a wake is within it.
  const PathReason peer = ReadPathReason("Wake: m-1 could not be woken: a; b: c");
  REQUIRE(peer.not_taken.size() == 1);
  CHECK(peer.not_taken[0].why == "m-1 could not be woken: a; b: c");

  const PathReason wake = ReadPathReason("this guard slept; weights of demo-0 (Node)");
  CHECK(wake.not_taken.empty());
  CHECK(wake.taken == "this guard slept; weights of demo-0 (Node)");
  CHECK(ReadPathReason("").not_taken.empty());
}

TEST_CASE("a service is explained by its instances, conditions and events", "[kubectl]") {
  Json service = ServiceJson(2);
  service =
      WithCondition(service, "Progressing", true, "InstancesStart", "not serving yet: demo-1");
  service["status"]["conditions"][0]["lastTransitionTime"] =
      api::FormatSeconds(kNow - std::chrono::seconds(9));
  Json second = Pod("demo-1", "Loading", 9, "Peer", "Wake: no guards");
  second = Annotated(second, api::kAnnotationTransport, "tcp/eth0");
  second = Annotated(second, api::kAnnotationStateOrigin, "from demo-0");
  const ServiceView view = View(service, {Serving("demo-0", 600), second});
  Json series = Event("Pod", "demo-1", "uid-demo-1", "FailedMount", 300, "no\x1b volume");
  series["series"] = {{"count", 7},
                      {"lastObservedTime", api::FormatMicros(kNow - std::chrono::seconds(3))}};
  const auto events = EventsOf(
      view, {series, Event("ModelService", "demo", "service-uid", "InstanceServes", 580, "demo-0"),
             Event("Pod", "other-0", "uid-other", "Started", 1, "not ours")});
  CHECK("\n" + ExplainText(view, "", events, kNow, kPlain) == R"(
demo-0: Active, Serving on node-a
  path      Storage: weights are loaded from storage
  not Wake  no guards
  not Peer  no other instance runs
  decided   2027-01-15T07:50:00Z, 10 min ago; 20.00 s to the first token

demo-1: Active, Loading on node-a
  path      Peer: weights come from instances that have them
  not Wake  no guards
  decided   2027-01-15T07:59:51Z, 9 s ago; 9.00 s so far
  caches    from demo-0

conditions
  Progressing  True  InstancesStart  9 s  not serving yet: demo-1

events
  9 min      Normal   ModelService demo  InstanceServes  demo-0
    3 s  x7  Warning  Pod demo-1         FailedMount     no\x1b volume
)");
}

TEST_CASE("one instance is explained without the others", "[kubectl]") {
  Json pod = Serving("demo-0", 600);
  pod = Annotated(pod, api::kAnnotationBytesBySource, R"({"peer":2000000000,"storage":0})");
  pod = Annotated(pod, api::kAnnotationTransport, "rc_mlx5/mlx5_0:1");
  const ServiceView view = View(Content(2), {pod, Serving("demo-1", 600)});
  const auto events =
      EventsOf(view, {Event("Pod", "demo-1", "uid-demo-1", "Started", 1, "not this one")});
  const std::string text = ExplainText(view, "demo-0", events, kNow, kPlain);
  CHECK(text.find("weights   2.0 GB from peers by rc_mlx5/mlx5_0:1\n") != std::string::npos);
  CHECK(text.find("demo-1") == std::string::npos);
  CHECK(ExplainText(view, "demo-7", events, kNow, kPlain).empty());
}

TEST_CASE("who is stopped before it has served has no start to explain", "[kubectl]") {
  Json pod = Pod("demo-0", "Loading", 5);
  pod["metadata"]["deletionTimestamp"] = "2027-01-15T08:00:00Z";
  const ServiceView view = View(Content(0), {pod});
  CHECK(ExplainText(view, "demo-0", {}, kNow, kPlain) == "demo-0: Active, Stopping on node-a\n");
}

TEST_CASE("what the planner is told is told apart by whose it is", "[plan]") {
  Json foreign = Pod("demo-1", "Serving", 5);
  foreign["metadata"]["ownerReferences"][0]["uid"] = "somebody";
  Json elsewhere = Pod("demo-2", "Serving", 5);
  elsewhere["metadata"]["namespace"] = "elsewhere";
  Json unlabelled = Pod("demo-3", "", 5);
  unlabelled["metadata"].erase("labels");
  const auto node = [](const std::string& name, const char* ready) {
    return Json{{"kind", "Node"},
                {"metadata", {{"name", name}}},
                {"status", {{"conditions", {{{"type", "Ready"}, {"status", ready}}}}}}};
  };
  Json endpoint = plan::RenderEndpoint(*api::ModelServiceFromJson(Content(1)));
  std::vector<Json> objects = {
      Serving("demo-0", 60),  foreign, elsewhere, unlabelled, node("node-a", "False"),
      node("node-b", "True"), endpoint};
  auto observed = plan::ObservedFromObjects(Content(1), objects);
  REQUIRE(observed.ok());
  REQUIRE(observed->instances.size() == 1);
  CHECK(observed->instances[0].node_lost);
  CHECK(observed->taken_names == std::vector<std::string>{"demo-1", "demo-3"});
  CHECK(observed->endpoint.has_value());
  CHECK_FALSE(observed->endpoint_taken);

  // All nodes at once are not believed lost, and a Service without the label is somebody else's.
  objects[5] = node("node-b", "False");
  objects[6]["metadata"].erase("labels");
  observed = plan::ObservedFromObjects(Content(1), objects);
  REQUIRE(observed.ok());
  CHECK_FALSE(observed->instances[0].node_lost);
  CHECK_FALSE(observed->endpoint.has_value());
  CHECK(observed->endpoint_taken);
}
