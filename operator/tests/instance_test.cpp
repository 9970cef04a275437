#include <catch2/catch.hpp>

#include "operator/plan/instance.h"

using namespace rouse;
using namespace rouse::plan;

namespace {

Json PodJson() {
  return Json::parse(R"({
    "metadata": {"name": "demo-1", "namespace": "default", "uid": "u", "creationTimestamp": "2026-01-02T03:04:05Z",
      "labels": {"rouse.dev/modelservice": "demo", "rouse.dev/role": "Active", "rouse.dev/launch-identity": "id",
        "topology.kubernetes.io/zone": "zone-1", "topology.kubernetes.io/rack": "rack-7"},
      "annotations": {"rouse.dev/path": "Peer", "rouse.dev/decided-at-us": "1800000000000001",
        "rouse.dev/agent-state": "Serving", "rouse.dev/agent-address": "https://10.0.0.1:7411",
        "rouse.dev/weights": "{\"form\":\"Loaded\",\"identity\":\"x\",\"bytes\":9,\"ranks\":1,\"servable\":true}",
        "rouse.dev/bytes-by-source": "{\"peer\":9,\"storage\":0}",
        "rouse.dev/timeline": "{\"path\":\"Peer\",\"decidedAtUs\":5,\"phases\":[{\"name\":\"Schedule\",\"startUs\":0,\"endUs\":7}],\"lanes\":[],\"totalUs\":7}"},
      "ownerReferences": [{"uid": "x"}, {"uid": "owner", "controller": true}]},
    "spec": {"nodeName": "node-a"},
    "status": {"phase": "Running", "startTime": "2026-01-02T03:04:06Z",
      "conditions": [{"type": "Ready", "status": "True"}, {"type": "PodScheduled", "status": "True"}],
      "initContainerStatuses": [{"name": "agent", "state": {"running": {}}}],
      "containerStatuses": [{"name": "engine", "restartCount": 4, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
        "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}]}})");
}

}  // namespace

TEST_CASE("a pod is read with everything that decisions depend on") {
  const auto i = InstanceFromPod(PodJson());
  REQUIRE(i.ok());
  CHECK(i->service == "demo");
  CHECK(i->owner_uid == "owner");
  CHECK(i->path == StartPath::kPeer);
  CHECK(api::ToMicros(i->decided_at) == 1'800'000'000'000'001);
  CHECK(i->node == "node-a");
  CHECK(i->zone == "zone-1");
  CHECK(i->rack == "rack-7");
  CHECK(i->ready);
  CHECK_FALSE(i->deleting);
  CHECK_FALSE(i->agent_down);
  CHECK(i->agent_state == AgentState::kServing);
  CHECK(i->weights->servable);
  CHECK(i->bytes.peer == 9);
  CHECK(i->timeline->total_us == 7);
  CHECK(i->crash_looping == "engine: exit code 137 (OOMKilled)");
  CHECK(i->restarts == 4);
  CHECK(api::FormatSeconds(*i->started_at) == "2026-01-02T03:04:06Z");
  CHECK(i->reported.size() == 5);
}

TEST_CASE("a pod that anybody may have written never breaks the reading") {
  Json pod = PodJson();
  pod["metadata"]["annotations"] = {
      {"rouse.dev/path", "Teleport"},        {"rouse.dev/decided-at-us", "yesterday"},
      {"rouse.dev/agent-state", "Dreaming"}, {"rouse.dev/weights", "{\"form\":"},
      {"rouse.dev/bytes-by-source", "[]"},   {"rouse.dev/timeline", "{\"path\":\"Peer\"}"}};
  const auto i = InstanceFromPod(pod);
  REQUIRE(i.ok());
  CHECK(i->path == StartPath::kStorage);
  CHECK(api::FormatSeconds(i->decided_at) == "2026-01-02T03:04:05Z");
  pod["metadata"]["annotations"]["rouse.dev/decided-at-us"] = "9223372036854775807";
  CHECK(api::FormatSeconds(InstanceFromPod(pod)->decided_at) == "2026-01-02T03:04:05Z");
  CHECK_FALSE(i->agent_state.has_value());
  CHECK_FALSE(i->weights.has_value());
  CHECK_FALSE(i->timeline.has_value());
  for (const char* part : {"/spec", "/status", "/status/conditions", "/status/containerStatuses",
                           "/metadata/annotations", "/metadata/ownerReferences"}) {
    for (const Json& nonsense : {Json(), Json(3), Json("x"), Json::array({1}), Json{{"a", 1}}}) {
      Json odd = PodJson();
      odd[Json::json_pointer(part)] = nonsense;
      INFO(part << " = " << nonsense.dump());
      CHECK(InstanceFromPod(odd).ok());
    }
  }
}

TEST_CASE("a pod without our label is refused") {
  Json pod = PodJson();
  pod["metadata"].erase("labels");
  CHECK_FALSE(InstanceFromPod(pod).ok());
  CHECK_FALSE(InstanceFromPod(Json()).ok());
}

TEST_CASE("an unschedulable pod says why") {
  Json pod = PodJson();
  pod["status"] = {{"phase", "Pending"},
                   {"conditions",
                    {{{"type", "PodScheduled"},
                      {"status", "False"},
                      {"reason", "Unschedulable"},
                      {"message", "no GPU"}}}}};
  CHECK(InstanceFromPod(pod)->unschedulable == "no GPU");
}

TEST_CASE("ordinals are read from names of exactly our form") {
  CHECK(Ordinal("demo-0", "demo") == 0);
  CHECK(Ordinal("demo-17", "demo") == 17);
  CHECK(Ordinal("a-b-3", "a-b") == 3);
  for (const char* name : {"demo", "demo-", "demo-00", "demo-01", "demo-x", "demo-1x", "demo--1",
                           "other-1", "demo-99999999999"}) {
    INFO(name);
    CHECK_FALSE(Ordinal(name, "demo").has_value());
  }
}
