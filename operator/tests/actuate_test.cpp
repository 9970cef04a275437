#include <catch2/catch.hpp>

#include "operator/tests/actuate_world.h"

using namespace rouse;
using namespace rouse::actuate;
using namespace rouse::actuate::testing;
using kube::Json;
using Lines = std::vector<std::string>;

namespace {

std::size_t Count(const Lines& lines, const std::string& start) {
  return static_cast<std::size_t>(std::count_if(
      lines.begin(), lines.end(), [&](const std::string& l) { return l.starts_with(start); }));
}

Json StatusOf(kube::FakeApi& api) {
  return (*api.Get(kube::ModelServices(), {"default", "demo"}))["status"];
}

}  // namespace

TEST_CASE("a reconcile creates what is missing, publishes the status and tells about it") {
  kube::FakeApi api;
  PutService(api, 2);
  Process process(api);
  process.Sync();
  REQUIRE(process.reconciler->Reconcile(kKey).ok());
  CHECK(PodNames(api) == Lines{"demo-0", "demo-1"});
  CHECK(StatusOf(api)["desired"] == 2);
  CHECK(process.Reasons() == Lines{"InstanceCreated", "InstanceCreated"});
}

TEST_CASE("a stale cache neither repeats a creation nor a deletion") {
  kube::FakeApi api;
  PutService(api, 2);
  Process process(api);
  process.Sync();
  REQUIRE(process.reconciler->Reconcile(kKey).ok());
  // The cache has the ModelService as it was before its status was written: a conflict.
  for (int i = 0; i < 2; ++i) CHECK(process.reconciler->Reconcile(kKey).ok());
  CHECK(Count(api.calls(), "create pod") == 2);

  process.Sync();
  PutService(api, 0);
  Process stale(api);  // Sees the pods, and does not see them go.
  stale.Sync();
  REQUIRE(stale.reconciler->Reconcile(kKey).ok());
  CHECK(Count(api.calls(), "delete pod") == 2);
  (void)stale.reconciler->Reconcile(kKey);
  CHECK(Count(api.calls(), "delete pod") == 2);
}

TEST_CASE("a pod that went before its creation was seen is not replaced twice") {
  kube::FakeApi api;
  PutService(api, 1);
  Process process(api);
  process.Sync();
  REQUIRE(process.reconciler->Reconcile(kKey).ok());
  process.Sync();
  // demo-0 goes by hand and the cache sees it; demo-0's replacement is made under the same name,
  // and the cache lags behind.
  api.Erase(kube::Pods(), {"default", "demo-0"});
  process.Sync();
  REQUIRE(process.reconciler->Reconcile(kKey).ok());
  (void)process.reconciler->Reconcile(kKey);
  CHECK(Count(api.calls(), "create pod") == 2);
  CHECK(PodNames(api) == Lines{"demo-0"});
}

TEST_CASE(
    "an operator that dies at any write, before or after it took effect, leaves a job that the "
    "next one finishes") {
  const bool lost_answer = GENERATE(false, true);
  for (int from : {0, 4, 1}) {
    for (int to : {3, 1, 0}) {
      for (int dies_at = 0; dies_at < 8; ++dies_at) {
        INFO(from << " to " << to << ", dies at write " << dies_at
                  << (lost_answer ? " after it" : ""));
        kube::FakeApi api;
        PutService(api, from);
        {
          Process first(api);
          first.Sync();
          REQUIRE(first.reconciler->Reconcile(kKey).ok());
        }
        REQUIRE(PodNames(api).size() == static_cast<std::size_t>(from));
        PutService(api, to);
        int writes = 0;
        api.SetHook([&](const std::string& verb, const std::string&) -> Status {
          if (verb == "get" || verb == "list") return {};
          const int number = writes++;
          if (number < dies_at) return {};
          if (number == dies_at && lost_answer) {
            api.LoseAnswer(verb);
            return {};
          }
          return Unavailable("fake: the process is dead");
        });
        {
          Process dying(api);
          dying.Sync();
          (void)dying.reconciler->Reconcile(kKey);
        }
        api.SetHook({});
        Process next(api);
        for (int round = 0; round < 3; ++round) {
          next.Sync();
          REQUIRE(next.reconciler->Reconcile(kKey).ok());
        }
        CHECK(PodNames(api).size() == static_cast<std::size_t>(to));
        next.Sync();
        const auto before = Writes(api).size();
        REQUIRE(next.reconciler->Reconcile(kKey).ok());
        CHECK(Writes(api).size() == before);
      }
    }
  }
}

TEST_CASE("a pod of the same name is taken as ours or left alone, by its owner") {
  kube::FakeApi api;
  PutService(api, 2);
  Process process(api);
  process.Sync();
  Json stranger = {{"metadata", {{"name", "demo-0"}, {"namespace", "default"}}}};
  SECTION("somebody else's is left alone and its name avoided") {
    api.Put(kube::Pods(), stranger);
    REQUIRE(process.reconciler->Reconcile(kKey).ok());
    CHECK(PodNames(api) == Lines{"demo-0", "demo-1", "demo-2"});
    CHECK_FALSE(PodJson(api, "demo-0")["metadata"].contains("labels"));
    CHECK(process.Reasons()[0] == "NameTaken");
  }
  SECTION("one of ours that the cache does not show counts as created") {
    stranger["metadata"]["ownerReferences"] =
        Json::array({{{"uid", "service-uid"}, {"controller", true}}});
    // The fake gives uids of its own: take the service's.
    stranger["metadata"]["ownerReferences"][0]["uid"] =
        api.Objects(kube::ModelServices())[0]["metadata"]["uid"];
    stranger["metadata"]["labels"]["rouse.dev/modelservice"] = "demo";
    api.Put(kube::Pods(), stranger);
    REQUIRE(process.reconciler->Reconcile(kKey).ok());
    CHECK(PodNames(api) == Lines{"demo-0", "demo-1"});
  }
  SECTION("one that is only said to be there is tried again") {
    api.SetHook([](const std::string& verb, const std::string& object) -> Status {
      if (verb == "create" && object.find("demo-0") != std::string::npos) {
        return Status(StatusCode::kAlreadyExists, "fake");
      }
      return {};
    });
    CHECK_FALSE(process.reconciler->Reconcile(kKey).ok());
    api.SetHook({});
    process.Sync();
    REQUIRE(process.reconciler->Reconcile(kKey).ok());
    CHECK(PodNames(api) == Lines{"demo-0", "demo-1"});
  }
}

TEST_CASE("a refused deletion is an error only while that very pod is there") {
  kube::FakeApi api;
  PutService(api, 1);
  Process process(api);
  process.Sync();
  REQUIRE(process.reconciler->Reconcile(kKey).ok());
  process.Sync();
  PutService(api, 0);
  SECTION("the pod was replaced by another of its name") {
    process.Sync();
    const Json pod = PodJson(api, "demo-0");
    api.Erase(kube::Pods(), {"default", "demo-0"});
    api.Put(kube::Pods(), pod);  // Gets another uid.
    const Json replaced = PodJson(api, "demo-0");
    REQUIRE(replaced["metadata"]["uid"] != pod["metadata"]["uid"]);
    CHECK(process.reconciler->Reconcile(kKey).ok());
    CHECK(Count(api.calls(), "delete pod") == 1);
    CHECK(PodJson(api, "demo-0") == replaced);
  }
  SECTION("the server is busy") {
    api.SetHook([](const std::string& verb, const std::string&) -> Status {
      return verb == "delete" ? Status(StatusCode::kConflict, "fake: modified") : Status();
    });
    process.Sync();
    CHECK_FALSE(process.reconciler->Reconcile(kKey).ok());
    CHECK(PodNames(api) == Lines{"demo-0"});
    api.SetHook({});
    process.Sync();
    CHECK(process.reconciler->Reconcile(kKey).ok());
    CHECK(PodNames(api).empty());
  }
}

TEST_CASE("a status is written only when it says something else") {
  kube::FakeApi api;
  PutService(api, 1);
  Process process(api);
  for (int i = 0; i < 2; ++i) {
    process.Sync();
    REQUIRE(process.reconciler->Reconcile(kKey).ok());
  }
  process.Sync();
  const auto before = Writes(api).size();
  process.now += std::chrono::hours(1);
  // An hour later the pod has no node still; nothing changed.
  REQUIRE(process.reconciler->Reconcile(kKey).ok());
  CHECK(Writes(api).size() == before);
}

TEST_CASE("a status that was computed from an old object does not overwrite a newer one") {
  kube::FakeApi api;
  PutService(api, 1);
  Process process(api);
  process.Sync();
  PutService(api, 2);  // The cache does not show it yet.
  const Json newer = api.Objects(kube::ModelServices())[0];
  // No failure: what the cache lacks is on its way, and brings the key back before this.
  const auto again = process.reconciler->Reconcile(kKey);
  REQUIRE(again.ok());
  CHECK(*again == std::chrono::seconds(1));
  CHECK(api.Objects(kube::ModelServices())[0] == newer);
  process.Sync();
  REQUIRE(process.reconciler->Reconcile(kKey).ok());
  CHECK(StatusOf(api)["desired"] == 2);
}

TEST_CASE("a pod that the API server refuses is told in the status until it is accepted") {
  kube::FakeApi api;
  PutService(api, 1);
  Process process(api);
  process.Sync();
  api.SetHook([](const std::string& verb, const std::string& object) -> Status {
    if (verb == "create" && object.find("pod") != std::string::npos) {
      return FailedPrecondition("create pod default/demo-0: exceeded quota: few");
    }
    return {};
  });
  CHECK_FALSE(process.reconciler->Reconcile(kKey).ok());
  CHECK(StatusOf(api).dump().find("exceeded quota") != std::string::npos);
  CHECK(StatusOf(api).dump().find("ActionFailed") != std::string::npos);
  process.Sync();
  const auto before = Count(api.calls(), "patch");
  CHECK_FALSE(process.reconciler->Reconcile(kKey).ok());
  CHECK(Count(api.calls(), "patch") == before);
  api.SetHook({});
  REQUIRE(process.reconciler->Reconcile(kKey).ok());
  CHECK(StatusOf(api).dump().find("ActionFailed") == std::string::npos);
}

TEST_CASE("no pod is made in a namespace that lacks what its pods need") {
  kube::FakeApi api;
  PutService(api, 2);
  Process process(api);
  process.Sync();
  process.prepare_answer = Unavailable("the certificate authorities: forbidden");
  CHECK_FALSE(process.reconciler->Reconcile(kKey).ok());
  CHECK(PodNames(api).empty());
  CHECK(process.prepared == Lines{"default"});
  CHECK(StatusOf(api).dump().find("certificate authorities: forbidden") != std::string::npos);
  process.prepare_answer = Status();
  process.Sync();
  REQUIRE(process.reconciler->Reconcile(kKey).ok());
  CHECK(PodNames(api) == Lines{"demo-0", "demo-1"});
}

TEST_CASE("an operator that does not lead any more writes nothing") {
  kube::FakeApi api;
  PutService(api, 2);
  Process process(api);
  process.Sync();
  process.leads = false;
  CHECK_FALSE(process.reconciler->Reconcile(kKey).ok());
  CHECK(Writes(api).empty());
}

TEST_CASE("a spec that cannot be read is told in the status, and its pods are left alone") {
  kube::FakeApi api;
  PutService(api, 1);
  Process process(api);
  process.Sync();
  REQUIRE(process.reconciler->Reconcile(kKey).ok());
  Json broken = ServiceJson(1);
  broken["spec"]["engine"].erase("image");
  api.Put(kube::ModelServices(), broken);
  process.Sync();
  REQUIRE(process.reconciler->Reconcile(kKey).ok());
  CHECK(PodNames(api) == Lines{"demo-0"});
  CHECK(StatusOf(api).dump().find("spec.engine.image") != std::string::npos);
}

TEST_CASE("a start is counted and told once, however often it is seen") {
  kube::FakeApi api;
  PutService(api, 1);
  Process process(api);
  process.Sync();
  REQUIRE(process.reconciler->Reconcile(kKey).ok());
  Json pod = PodJson(api, "demo-0");
  pod["metadata"]["annotations"]["rouse.dev/timeline"] =
      R"({"path":"Storage","decidedAtUs":1,"phases":[{"name":"Schedule","startUs":0,"endUs":2500000}],"lanes":[],"totalUs":2500000})";
  pod["metadata"]["annotations"]["rouse.dev/bytes-by-source"] = R"({"peer":0,"storage":77})";
  api.Put(kube::Pods(), pod);
  for (int i = 0; i < 3; ++i) {
    process.Sync();
    REQUIRE(process.reconciler->Reconcile(kKey).ok());
  }
  const std::string text = process.metrics.Text();
  CHECK(text.find(R"(rouse_scaleout_total_seconds_count{outcome="failure",path="Peer"} 0)") !=
        std::string::npos);
  CHECK(
      text.find(
          R"(rouse_instances_desired{modelservice="demo",namespace="default",role="active"} 1)") !=
      std::string::npos);
  CHECK(text.find(
            R"(rouse_instances_desired{modelservice="demo",namespace="default",role="guard"} 0)") !=
        std::string::npos);
  CHECK(text.find(R"(rouse_scaleout_seconds_count{path="Storage",phase="Schedule"} 1)") !=
        std::string::npos);
  CHECK(text.find(R"(rouse_scaleout_seconds_sum{path="Storage",phase="Schedule"} 2.5)") !=
        std::string::npos);
  CHECK(text.find(R"(rouse_scaleout_total_seconds_count{outcome="success",path="Storage"} 1)") !=
        std::string::npos);
  CHECK(text.find(R"(rouse_scaleout_bytes_total{path="Storage",source="storage"} 77)") !=
        std::string::npos);
  CHECK(
      text.find(R"(rouse_instances{modelservice="demo",namespace="default",state="starting"} 1)") !=
      std::string::npos);
  CHECK(Count(process.Reasons(), "InstanceServes") == 1);

  Process restarted(api);
  restarted.Sync();
  REQUIRE(restarted.reconciler->Reconcile(kKey).ok());
  CHECK(restarted.notes.empty());
  CHECK(restarted.metrics.Text().find("rouse_scaleout_seconds_count{") == std::string::npos);
}

TEST_CASE("the series of a ModelService that is gone are gone") {
  kube::FakeApi api;
  PutService(api, 1);
  Process process(api);
  process.Sync();
  REQUIRE(process.reconciler->Reconcile(kKey).ok());
  CHECK(process.metrics.Text().find("rouse_instances{") != std::string::npos);
  CHECK(process.metrics.Text().find("rouse_instances_desired{") != std::string::npos);
  api.Erase(kube::ModelServices(), {"default", "demo"});
  process.Sync();
  REQUIRE(process.reconciler->Reconcile(kKey).ok());
  CHECK(process.metrics.Text().find("rouse_instances{") == std::string::npos);
  CHECK(process.metrics.Text().find("rouse_instances_desired{") == std::string::npos);
}

TEST_CASE("what was just done is shown until the cache shows it, and not for ever") {
  Pending::Time now{};
  Pending pending(std::chrono::seconds(30), [&] { return now; });
  plan::testing::State state(1);
  const plan::Instance pod = state.Pod("demo-0", std::chrono::seconds(0));
  const auto seen = [&] {
    plan::Observed observed = state.Done();
    pending.AddTo(kKey, observed);
    return observed;
  };
  pending.Wrote(kKey, pod, [] { return false; });
  REQUIRE(seen().instances.size() == 1);
  SECTION("its event comes") {
    pending.Seen(kKey, pod.uid, &pod);
    CHECK(seen().instances.empty());
  }
  SECTION("its event never comes") {
    now += std::chrono::seconds(31);
    CHECK(seen().instances.empty());
  }
  SECTION("its event came before the answer") {
    Pending other;
    other.Wrote(kKey, pod, [] { return true; });
    plan::Observed observed = state.Done();
    other.AddTo(kKey, observed);
    CHECK(observed.instances.empty());
  }
  SECTION("the ModelService is another one by now") {
    state.Done().service.metadata.uid = "another";
    CHECK(seen().instances.empty());
  }
  SECTION("deleted, until the cache shows that it goes") {
    state.Add(pod);
    pending.Deleted(kKey, pod.uid);
    REQUIRE(seen().instances.size() == 1);
    CHECK(seen().instances[0].deleting);
    pending.Seen(kKey, pod.uid, &pod);  // An older event: still not deleting.
    CHECK(seen().instances[0].deleting);
    pending.Seen(kKey, pod.uid, nullptr);
    CHECK_FALSE(seen().instances[0].deleting);
  }
  SECTION("a taken name") {
    pending.Taken(kKey, "demo-7");
    CHECK(seen().taken_names == Lines{"demo-7"});
    now += std::chrono::seconds(31);
    CHECK(seen().taken_names.empty());
  }
}

TEST_CASE("a ModelService has a Service for its replicas, and it is kept as it should be") {
  kube::FakeApi api;
  PutService(api, 0);
  const Json wanted = api.Objects(kube::Services())[0]["spec"];
  CHECK(wanted["selector"] ==
        Json{{"rouse.dev/modelservice", "demo"}, {"rouse.dev/role", "Active"}});
  CHECK(wanted["ports"][0]["port"] == 80);
  CHECK(wanted["ports"][0]["targetPort"] == 8000);
  Process process(api);
  SECTION("it is made") {
    api.Erase(kube::Services(), {"default", "demo"});
    process.Sync();
    REQUIRE(process.reconciler->Reconcile(kKey).ok());
    CHECK(api.Objects(kube::Services())[0]["spec"] == wanted);
    (void)process.reconciler->Reconcile(kKey);  // The cache does not show it yet.
    CHECK(Count(api.calls(), "create service") == 1);
    process.Sync();
    REQUIRE(process.reconciler->Reconcile(kKey).ok());
    CHECK(Count(api.calls(), "apply service") == 0);
  }
  SECTION("somebody has changed whom it selects") {
    Json changed = api.Objects(kube::Services())[0];
    changed["spec"]["selector"]["rouse.dev/role"] = "Guard";
    api.Put(kube::Services(), changed);
    process.Sync();
    REQUIRE(process.reconciler->Reconcile(kKey).ok());
    CHECK(api.Objects(kube::Services())[0]["spec"] == wanted);
  }
  SECTION("a port that somebody has added stays") {
    Json changed = api.Objects(kube::Services())[0];
    changed["spec"]["ports"].push_back({{"name", "more"}, {"port", 81}, {"targetPort", 81}});
    api.Put(kube::Services(), changed);
    process.Sync();
    REQUIRE(process.reconciler->Reconcile(kKey).ok());
    CHECK(api.Objects(kube::Services())[0]["spec"]["ports"].size() == 2);
  }
  SECTION("one of that name is somebody else's") {
    api.Erase(kube::Services(), {"default", "demo"});
    const Json theirs = {{"metadata", {{"name", "demo"}, {"namespace", "default"}}}};
    api.Put(kube::Services(), theirs);
    for (int i = 0; i < 3; ++i) {
      process.Sync();
      // Theirs does not carry our label, which the informer selects by.
      process.cache.endpoint_sink().Take({kube::StoreEvent::Kind::kDelete, theirs});
      REQUIRE(process.reconciler->Reconcile(kKey).ok());
    }
    CHECK_FALSE(api.Objects(kube::Services())[0].contains("spec"));
    CHECK(process.Reasons() == Lines{"ServiceNameTaken"});
  }
}
