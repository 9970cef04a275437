// What the operator does to guards: claims that hold once, wakes that fail, gates, leaving.

#include <catch2/catch.hpp>
#include <set>

#include "operator/tests/actuate_world.h"

using namespace rouse;
using namespace rouse::actuate;
using namespace rouse::actuate::testing;
using kube::Json;
using Lines = std::vector<std::string>;

namespace {

Json PodOf(const std::string& name, const std::string& role, const std::string& state,
           const Json& service) {
  const auto spec = api::ModelServiceFromJson(service)->spec;
  Json pod = {
      {"metadata",
       {{"name", name},
        {"namespace", "default"},
        {"labels",
         {{"rouse.dev/modelservice", "demo"},
          {"rouse.dev/role", role},
          {"rouse.dev/launch-identity", api::LaunchIdentity(spec)}}},
        {"annotations",
         {{"rouse.dev/path", "Peer"},
          {"rouse.dev/decided-at-us", "1000000"},
          {"rouse.dev/revision", api::Revision(spec)},
          {"rouse.dev/agent-state", state},
          {"llm-d.ai/active-ports", ""},
          {"rouse.dev/agent-address", "https://" + name + ":7411"}}},
        {"ownerReferences", {{{"uid", kube::MetaString(service, "uid")}, {"controller", true}}}}}},
      {"spec",
       {{"nodeName", "node-a"}, {"readinessGates", {{{"conditionType", "rouse.dev/serving"}}}}}},
      {"status", {{"phase", "Running"}, {"startTime", "2026-01-02T03:04:05Z"}}}};
  if (state == "Serving") {
    pod["metadata"]["annotations"]["rouse.dev/weights"] =
        json::Canonical(ToJson(WeightsReport{.form = WeightForm::kLoaded,
                                             .identity = std::string(64, 'a'),
                                             .bytes = 1000,
                                             .ranks = 1,
                                             .servable = true}));
    pod["status"]["conditions"] = {{{"type", "rouse.dev/serving"}, {"status", "True"}},
                                   {{"type", "Ready"}, {"status", "True"}}};
  }
  pod["metadata"]["annotations"]["rouse.dev/timeline"] =
      json::Canonical(ToJson(Timeline{.path = StartPath::kPeer,
                                      .decided_at_us = 1'000'000,
                                      .phases = {{"Schedule", 0, 1'000'000}},
                                      .lanes = {},
                                      .total_us = 1'000'000}));
  return pod;
}

/// demo-0 serves, demo-1 sleeps; the ModelService wants so many replicas.
struct GuardWorld {
  explicit GuardWorld(int replicas, int guards = 1) {
    Json service = ServiceJson(replicas);
    service["spec"]["fastStart"] = {{"profile", "Guarded"}};
    service["spec"]["guards"] = {{"replicas", guards}};
    api.Put(kube::ModelServices(), service);
    service = api.Objects(kube::ModelServices())[0];
    PutEndpoint(api);
    api.Put(kube::Pods(), PodOf("demo-0", "Active", "Serving", service));
    api.Put(kube::Pods(), PodOf("demo-1", "Guard", "Asleep", service));
  }

  std::string Role(const std::string& pod) {
    return PodJson(api, pod)["metadata"]["labels"]["rouse.dev/role"];
  }
  std::string Annotation(const std::string& pod, const std::string& name) {
    const Json annotations = PodJson(api, pod)["metadata"]["annotations"];
    return annotations.contains(name) ? annotations[name].get<std::string>() : "";
  }

  kube::FakeApi api;
};

}  // namespace

TEST_CASE("a guard is claimed on its pod, then its agent is told") {
  GuardWorld world(2);
  Process process(world.api);
  process.Sync();
  REQUIRE(process.reconciler->Reconcile(kKey).ok());
  REQUIRE(process.agents.told.size() == 1);
  const std::string uid = PodJson(world.api, "demo-1")["metadata"]["uid"];
  CHECK(process.agents.told[0].first == AgentName{"default", "demo-1", uid, "https://demo-1:7411"});
  CHECK(process.agents.told[0].second.role == Role::kActive);
  CHECK(process.agents.told[0].second.decided_at_us == api::ToMicros(kNow));
  REQUIRE(process.agents.told[0].second.peers.size() == 1);
  CHECK(process.agents.told[0].second.peers[0].pod == "demo-0");
  CHECK(world.Role("demo-1") == "Active");
  CHECK(world.Annotation("demo-1", "rouse.dev/path") == "Wake");
  CHECK_FALSE(
      PodJson(world.api, "demo-1")["metadata"]["annotations"].contains("llm-d.ai/active-ports"));
  CHECK(world.Annotation("demo-1", "rouse.dev/decided-at-us") ==
        std::to_string(api::ToMicros(kNow)));
  CHECK(process.Reasons()[0] == "GuardWoken");
  // The cache is behind: nobody is claimed again, and no replica started.
  (void)process.reconciler->Reconcile(kKey);
  CHECK(process.agents.told.size() == 1);
  CHECK(world.Role("demo-2") == "Guard");  // The one that takes its place.
}

TEST_CASE(
    "the connection to a guard's agent is opened while its claim is written, and no earlier") {
  GuardWorld world(1);
  Process process(world.api);
  process.Sync();
  REQUIRE(process.reconciler->Reconcile(kKey).ok());
  CHECK(process.agents.connected.empty());
  Json service = world.api.Objects(kube::ModelServices())[0];
  service["spec"]["replicas"] = 2;
  world.api.Put(kube::ModelServices(), service);
  process.Sync();
  std::size_t told_before = 1;
  world.api.SetHook([&](const std::string& verb, const std::string& object) -> Status {
    if (verb != "patch" || object.find("demo-1") == std::string::npos) return {};
    told_before = process.agents.told.size();
    return Status(StatusCode::kConflict, "fake: somebody else has written");
  });
  (void)process.reconciler->Reconcile(kKey);
  CHECK(told_before == 0);
  CHECK(process.agents.told.empty());  // Who is not claimed is not told.
  REQUIRE(process.agents.connected.size() == 1);
  CHECK(process.agents.connected[0].pod == "demo-1");
}

TEST_CASE("two operators with stale caches claim a guard once") {
  GuardWorld world(2);
  Process first(world.api), second(world.api);
  first.Sync();
  second.Sync();
  REQUIRE(first.reconciler->Reconcile(kKey).ok());
  (void)second.reconciler->Reconcile(kKey);
  CHECK(first.agents.told.size() + second.agents.told.size() == 1);
}

TEST_CASE("a wake that fails is undone, and the next path is tried in the same pass") {
  GuardWorld world(2);
  Process process(world.api);
  process.Sync();
  process.agents.answer = Status(StatusCode::kConflict, "it has failed for good");
  REQUIRE(process.reconciler->Reconcile(kKey).ok());
  CHECK(process.agents.told.size() == 1);
  CHECK(world.Role("demo-1") == "Guard");
  CHECK(world.Role("demo-2") == "Active");
  CHECK(world.Annotation("demo-2", "rouse.dev/path") == "Peer");
  CHECK(world.Annotation("demo-2", "rouse.dev/path-reason") ==
        "Wake: demo-1 could not be woken: it has failed for good");
  const auto failed =
      plan::FailedWakesFromText(world.Annotation("demo-1", "rouse.dev/failed-wakes"));
  REQUIRE(failed.has_value());
  CHECK(failed->count == 1);
  CHECK(process.Reasons()[0] == "GuardNotWoken");
  const std::string metrics = process.metrics.Text();
  CHECK(metrics.find(R"(rouse_actions_total{action="ClaimGuard"} 1)") != std::string::npos);
  CHECK(metrics.find(R"(rouse_scaleout_total_seconds_count{outcome="failure",path="Wake"} 1)") !=
        std::string::npos);

  SECTION("a second time it is retired") {
    process.Sync();
    Json service = world.api.Objects(kube::ModelServices())[0];
    service["spec"]["replicas"] = 3;
    world.api.Put(kube::ModelServices(), service);
    process.now += std::chrono::seconds(61);
    process.Sync();
    REQUIRE(process.reconciler->Reconcile(kKey).ok());
    CHECK(process.agents.told.size() == 2);
    process.Sync();
    REQUIRE(process.reconciler->Reconcile(kKey).ok());
    CHECK(PodJson(world.api, "demo-1").is_null());
  }
}

TEST_CASE("a claim whose undoing is lost ends with its lease") {
  GuardWorld world(2);
  Process process(world.api);
  process.Sync();
  process.agents.answer = Unavailable("connection refused");
  int patches = 0;
  world.api.SetHook([&](const std::string& verb, const std::string& object) -> Status {
    if (verb == "patch" && object.find("pod") != std::string::npos && patches++ > 0) {
      return Unavailable("fake: the API server is gone");
    }
    return {};
  });
  CHECK_FALSE(process.reconciler->Reconcile(kKey).ok());
  CHECK(world.Role("demo-1") == "Active");
  world.api.SetHook({});
  Process next(world.api);
  next.Sync();
  REQUIRE(next.reconciler->Reconcile(kKey).ok());
  CHECK(world.Role("demo-1") == "Active");
  next.now += std::chrono::seconds(151);
  next.Sync();
  REQUIRE(next.reconciler->Reconcile(kKey).ok());
  CHECK(world.Role("demo-1") == "Guard");
}

TEST_CASE("an operator that dies between claim and command leaves a claim that ends") {
  GuardWorld world(2);
  {
    Process dying(world.api);
    dying.Sync();
    world.api.LoseAnswer("patch");
    (void)dying.reconciler->Reconcile(kKey);
    CHECK(dying.agents.told.empty());
  }
  CHECK(world.Role("demo-1") == "Active");
  Process next(world.api);
  next.Sync();
  REQUIRE(next.reconciler->Reconcile(kKey).ok());
  CHECK(PodJson(world.api, "demo-2")["metadata"]["labels"]["rouse.dev/role"] == "Guard");
  next.now += std::chrono::seconds(151);
  next.Sync();
  REQUIRE(next.reconciler->Reconcile(kKey).ok());
  CHECK(world.Role("demo-1") == "Guard");
}

TEST_CASE("a replica becomes a guard: out of the endpoints first, then it is told") {
  GuardWorld world(0);
  world.api.Erase(kube::Pods(), {"default", "demo-1"});
  Process process(world.api);
  process.Sync();
  REQUIRE(process.reconciler->Reconcile(kKey).ok());
  CHECK(world.Role("demo-0") == "Guard");
  CHECK(process.agents.told.empty());
  Json pod = PodJson(world.api, "demo-0");
  CHECK(pod["status"]["conditions"][0]["status"] == "False");
  pod["status"]["conditions"] = {{{"type", "rouse.dev/serving"}, {"status", "False"}},
                                 {{"type", "Ready"}, {"status", "False"}}};
  world.api.Put(kube::Pods(), pod);
  process.Sync();
  process.agents.answer = Status(StatusCode::kConflict, "it cannot sleep now");
  const auto again = process.reconciler->Reconcile(kKey);
  REQUIRE(again.ok());
  CHECK(*again == std::chrono::seconds(1));
  process.agents.answer = {};
  process.Sync();
  REQUIRE(process.reconciler->Reconcile(kKey).ok());
  REQUIRE(process.agents.told.size() == 2);
  CHECK(process.agents.told[1].second.role == Role::kGuard);
}

TEST_CASE("a replica that goes leaves the endpoints before its pod is deleted") {
  GuardWorld world(0, 0);
  world.api.Erase(kube::Pods(), {"default", "demo-1"});
  Json service = ServiceJson(0);
  world.api.Put(kube::ModelServices(), service);
  Json pod = PodOf("demo-0", "Active", "Serving", world.api.Objects(kube::ModelServices())[0]);
  world.api.Put(kube::Pods(), pod);
  Process process(world.api);
  process.Sync();
  REQUIRE(process.reconciler->Reconcile(kKey).ok());
  REQUIRE(PodNames(world.api) == Lines{"demo-0"});
  CHECK(plan::LeavingFromText(world.Annotation("demo-0", "rouse.dev/leaving")).has_value());
  pod = PodJson(world.api, "demo-0");
  pod["status"]["conditions"] = {{{"type", "rouse.dev/serving"}, {"status", "False"}},
                                 {{"type", "Ready"}, {"status", "False"}}};
  world.api.Put(kube::Pods(), pod);
  process.Sync();
  REQUIRE(process.reconciler->Reconcile(kKey).ok());
  CHECK(PodNames(world.api).empty());
}

TEST_CASE("a hundred guards are claimed side by side, each once") {
  GuardWorld world(101, 0);
  const Json service = world.api.Objects(kube::ModelServices())[0];
  for (int i = 2; i <= 100; ++i) {
    world.api.Put(kube::Pods(), PodOf("demo-" + std::to_string(i), "Guard", "Asleep", service));
  }
  Process process(world.api);
  process.Sync();
  REQUIRE(process.reconciler->Reconcile(kKey).ok());
  std::set<std::string> told;
  for (const auto& [agent, request] : process.agents.told) told.insert(agent.address);
  CHECK(told.size() == 100);
  CHECK(process.agents.told.size() == 100);
}
