// What the operator does to guards: claims that hold once, wakes that fail, gates, leaving.

#include <atomic>
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

  void Annotate(const std::string& pod, const std::string& name, const std::string& value) {
    Json changed = PodJson(api, pod);
    changed["metadata"]["annotations"][name] = value;
    api.Put(kube::Pods(), changed);
  }

  kube::FakeApi api;
};

}  // namespace

TEST_CASE("a guard's agent is told, and the guard is claimed on its pod") {
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

TEST_CASE("that we lead is confirmed before any guard is told, once for all of them") {
  GuardWorld world(3, 2);
  world.api.Put(kube::Pods(),
                PodOf("demo-2", "Guard", "Asleep", world.api.Objects(kube::ModelServices())[0]));
  Process process(world.api);
  process.Sync();
  SECTION("it holds: they are told before any claim is written") {
    std::atomic<std::size_t> told_before = 0;
    world.api.SetHook([&](const std::string& verb, const std::string& object) -> Status {
      if (verb == "patch" && object.find("pod") != std::string::npos && told_before == 0) {
        told_before = process.agents.told.size();
      }
      return {};
    });
    REQUIRE(process.reconciler->Reconcile(kKey).ok());
    CHECK(told_before == 2);
    CHECK(process.confirmed == 1);
  }
  SECTION("it does not: nobody is told and nothing claimed") {
    process.confirm_answer = Unavailable("the lease is held by another");
    const auto refused = process.reconciler->Reconcile(kKey);
    CHECK(refused.status().message().find("the lease is held by another") != std::string::npos);
    CHECK(process.agents.told.empty());
    CHECK(world.Role("demo-1") == "Guard");
    CHECK(world.Role("demo-2") == "Guard");
  }
  SECTION("nobody is to be woken: it is not asked for") {
    Json service = world.api.Objects(kube::ModelServices())[0];
    service["spec"]["replicas"] = 1;
    world.api.Put(kube::ModelServices(), service);
    process.Sync();
    REQUIRE(process.reconciler->Reconcile(kKey).ok());
    CHECK(process.confirmed == 0);
  }
}

TEST_CASE("a guard that was claimed meanwhile is not claimed again") {
  GuardWorld world(2);
  Process first(world.api), second(world.api);
  first.Sync();
  second.Sync();
  REQUIRE(first.reconciler->Reconcile(kKey).ok());
  second.now += std::chrono::seconds(5);
  (void)second.reconciler->Reconcile(kKey);  // A leader that slept since it was confirmed.
  CHECK(second.Reasons() == Lines{});
  CHECK(world.Annotation("demo-1", "rouse.dev/decided-at-us") ==
        std::to_string(api::ToMicros(kNow)));
}

TEST_CASE("a guard whose agent says that it wakes, before it is claimed, is claimed nevertheless") {
  GuardWorld world(2);
  Process process(world.api);
  process.Sync();
  process.agents.on_told = [&] { world.Annotate("demo-1", "rouse.dev/agent-state", "Waking"); };
  REQUIRE(process.reconciler->Reconcile(kKey).ok());
  CHECK(world.Role("demo-1") == "Active");
  CHECK(world.Annotation("demo-1", "rouse.dev/agent-state") == "Waking");
}

TEST_CASE("a guard that was told to leave after it was told to wake is not claimed") {
  GuardWorld world(2);
  Process process(world.api);
  process.Sync();
  process.agents.on_told = [&] {
    const plan::Leaving leaving{.at = kNow, .cause = plan::Cause::kScaleIn, .reason = "too many"};
    world.Annotate("demo-1", "rouse.dev/leaving", json::Canonical(ToJson(leaving)));
  };
  const auto again = process.reconciler->Reconcile(kKey);
  REQUIRE(again.ok());
  CHECK(**again <= std::chrono::milliseconds(200));
  CHECK(world.Role("demo-1") == "Guard");
}

TEST_CASE("a guard that cannot be told stays one, and the next path is tried in the same pass") {
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

TEST_CASE("a wake whose failure could not be written down is tried again") {
  GuardWorld world(2);
  Process process(world.api);
  process.Sync();
  process.agents.answer = Unavailable("connection refused");
  world.api.SetHook([&](const std::string& verb, const std::string& object) -> Status {
    if (verb == "patch" && object.find("pod") != std::string::npos) {
      return Unavailable("fake: the API server is gone");
    }
    return {};
  });
  CHECK_FALSE(process.reconciler->Reconcile(kKey).ok());
  CHECK(world.Role("demo-1") == "Guard");
  world.api.SetHook({});
  process.agents.answer = {};
  process.Sync();
  REQUIRE(process.reconciler->Reconcile(kKey).ok());
  CHECK(process.agents.told.size() == 2);
  CHECK(world.Role("demo-1") == "Active");
}

TEST_CASE("an operator that dies between command and claim leaves a guard that is taken first") {
  GuardWorld world(2, 2);
  world.api.Put(kube::Pods(),
                PodOf("demo-2", "Guard", "Asleep", world.api.Objects(kube::ModelServices())[0]));
  std::string woken;
  {
    Process dying(world.api);
    dying.Sync();
    world.api.SetHook([&](const std::string& verb, const std::string&) -> Status {
      return verb == "patch" ? Unavailable("fake: dead by now") : Status();
    });
    (void)dying.reconciler->Reconcile(kKey);
    REQUIRE(dying.agents.told.size() == 1);
    woken = dying.agents.told[0].first.pod;
  }
  world.api.SetHook({});
  CHECK(world.Role(woken) == "Guard");
  const std::string other = woken == "demo-1" ? "demo-2" : "demo-1";
  world.Annotate(woken, "rouse.dev/agent-state", "Waking");
  world.Annotate(woken, "rouse.dev/decided-at-us", "2000000");  // It would come last else.
  Process next(world.api);
  next.Sync();
  REQUIRE(next.reconciler->Reconcile(kKey).ok());
  CHECK(world.Role(woken) == "Active");
  CHECK(world.Role(other) == "Guard");
}

TEST_CASE("a claim whose answer is lost holds, and ends if the guard sleeps on") {
  GuardWorld world(2);
  {
    Process dying(world.api);
    dying.Sync();
    world.api.LoseAnswer("patch");
    (void)dying.reconciler->Reconcile(kKey);
  }
  CHECK(world.Role("demo-1") == "Active");
  Process next(world.api);
  next.Sync();
  REQUIRE(next.reconciler->Reconcile(kKey).ok());
  CHECK(world.Role("demo-1") == "Active");
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

TEST_CASE("those who may be woken next are kept connected, the first one first") {
  GuardWorld world(1, 3);
  const Json service = world.api.Objects(kube::ModelServices())[0];
  Json early = PodOf("demo-2", "Guard", "Asleep", service);
  early["metadata"]["annotations"]["rouse.dev/decided-at-us"] = "999999";
  world.api.Put(kube::Pods(), early);
  world.api.Put(kube::Pods(), PodOf("demo-3", "Guard", "Sleeping", service));
  Process process(world.api);
  process.Sync();
  REQUIRE(process.reconciler->Reconcile(kKey).ok());
  CHECK(process.agents.kept[kKey] == Lines{"demo-2", "demo-1"});
  world.api.Erase(kube::ModelServices(), {"default", "demo"});
  process.Sync();
  REQUIRE(process.reconciler->Reconcile(kKey).ok());
  CHECK(process.agents.kept[kKey].empty());
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
