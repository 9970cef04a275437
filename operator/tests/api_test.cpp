#include <catch2/catch.hpp>

#include "operator/api/launch_identity.h"
#include "operator/api/model_service.h"
#include "operator/tests/state.h"

using namespace rouse;
using namespace rouse::api;
using plan::testing::ServiceJson;

namespace {

Spec SpecWith(const std::string& pointer, const Json& value) {
  Json object = ServiceJson(1);
  object[Json::json_pointer(pointer)] = value;
  auto service = ModelServiceFromJson(object);
  INFO(service.status().ToString());
  REQUIRE(service.ok());
  return service->spec;
}

std::string ErrorWith(const std::string& pointer, const Json& value) {
  Json object = ServiceJson(1);
  object[Json::json_pointer(pointer)] = value;
  const auto service = ModelServiceFromJson(object);
  REQUIRE_FALSE(service.ok());
  CHECK(service.status().code() == StatusCode::kInvalidArgument);
  return service.status().message();
}

}  // namespace

TEST_CASE("times are read in both forms and written back the same") {
  CHECK(FormatSeconds(*ParseTime("2026-11-24T12:34:56Z")) == "2026-11-24T12:34:56Z");
  CHECK(FormatMicros(*ParseTime("2026-11-24T12:34:56.000007Z")) == "2026-11-24T12:34:56.000007Z");
  CHECK(FormatMicros(*ParseTime("2026-11-24T12:34:56.5Z")) == "2026-11-24T12:34:56.500000Z");
  CHECK(FormatMicros(*ParseTime("2026-11-24T12:34:56.123456789Z")) ==
        "2026-11-24T12:34:56.123456Z");
  CHECK(ToMicros(*ParseTime("1970-01-01T00:00:01Z")) == 1'000'000);
  for (const char* bad :
       {"", "Z", "2026-11-24", "2026-11-24T12:34:56", "2026-11-24T12:34:56+01:00",
        "2026-13-24T12:34:56Z", "2026-02-30T12:34:56Z", "2026-11-24T24:00:00Z",
        "2026-11-24T12:34:56.Z", "2026-11-24T12:34:56,5Z", "2o26-11-24T12:34:56Z"}) {
    INFO(bad);
    CHECK_FALSE(ParseTime(bad).has_value());
  }
}

TEST_CASE("a minimal spec gets every default") {
  const Json object = Json::parse(R"({"metadata": {"name": "demo", "uid": "u"}, "spec": {
      "model": {"name": "m", "storage": {"hostPath": {"path": "/models/m"}}},
      "engine": {"image": "vllm:1"}}})");
  const auto service = ModelServiceFromJson(object);
  INFO(service.status().ToString());
  REQUIRE(service.ok());
  const Spec& spec = service->spec;
  CHECK(spec.replicas == 1);
  CHECK(spec.model.revision == "main");
  CHECK(spec.engine.port == 8000);
  CHECK(spec.fast_start.profile == Profile::kShared);
  CHECK(spec.fast_start.weights_source == WeightSource::kPeer);
  CHECK(spec.fast_start.weights_fallback == Fallback::kStorage);
  CHECK(spec.fast_start.state_reuse);
  CHECK(spec.fast_start.state_copies == 2);
  CHECK(spec.fast_start.capture_mode == CaptureMode::kEager);
  CHECK(spec.fast_start.process_start == ProcessStart::kFork);
  CHECK(spec.guard_replicas == 0);
}

TEST_CASE("each profile decides what was not set by hand") {
  CHECK(SpecWith("/spec/fastStart", {{"profile", "Guarded"}}).guard_replicas == 1);
  const Spec lazy = SpecWith("/spec/fastStart", {{"profile", "LazyCapture"}});
  CHECK(lazy.guard_replicas == 0);
  CHECK(lazy.fast_start.capture_mode == CaptureMode::kLazy);
  CHECK(lazy.fast_start.capture_trigger == CaptureTrigger::kFirstRequest);
  const Spec mixed = SpecWith("/spec/fastStart", {{"profile", "LazyCapture"},
                                                  {"graphCapture", {{"trigger", "Idle"}}},
                                                  {"weights", {{"fallback", "None"}}},
                                                  {"processStart", "Spawn"}});
  CHECK(mixed.fast_start.capture_mode == CaptureMode::kLazy);
  CHECK(mixed.fast_start.capture_trigger == CaptureTrigger::kIdle);
  CHECK(mixed.fast_start.weights_source == WeightSource::kPeer);
  CHECK(mixed.fast_start.weights_fallback == Fallback::kNone);
  CHECK(mixed.fast_start.process_start == ProcessStart::kSpawn);
}

TEST_CASE("a spec with its defaults filled in reads back as the same spec") {
  Json object = ServiceJson(4);
  object["spec"]["fastStart"] = {{"profile", "LazyCapture"}, {"weights", {{"fallback", "None"}}}};
  const auto first = ModelServiceFromJson(object);
  REQUIRE(first.ok());
  object["spec"] = ToJson(first->spec);
  const auto second = ModelServiceFromJson(object);
  INFO(second.status().ToString());
  REQUIRE(second.ok());
  CHECK(second->spec == first->spec);
}

TEST_CASE("a bad field is refused by its name") {
  CHECK(ErrorWith("/spec/replicas", -1).find("spec.replicas") != std::string::npos);
  CHECK(ErrorWith("/spec/replicas", "2").find("spec.replicas") != std::string::npos);
  CHECK(ErrorWith("/spec/replicas", 1001).find("spec.replicas") != std::string::npos);
  CHECK(ErrorWith("/spec/model", Json::object()).find("spec.model.name") != std::string::npos);
  CHECK(ErrorWith("/spec/model/storage", Json::object()).find("spec.model.storage") !=
        std::string::npos);
  CHECK(ErrorWith("/spec/model/storage/hostPath", {{"path", "/x"}}).find("exactly one") !=
        std::string::npos);
  CHECK(ErrorWith("/spec/model/storage/persistentVolumeClaim/path", "../x")
            .find("spec.model.storage.persistentVolumeClaim.path") != std::string::npos);
  CHECK(ErrorWith("/spec/model/storage", {{"hostPath", {{"path", "relative"}}}})
            .find("spec.model.storage.hostPath.path: must be absolute") != std::string::npos);
  CHECK(ErrorWith("/spec/engine", {{"args", {"x"}}}).find("spec.engine.image") !=
        std::string::npos);
  CHECK(ErrorWith("/spec/engine/args", {1}).find("spec.engine.args") != std::string::npos);
  CHECK(ErrorWith("/spec/engine/port", 0).find("spec.engine.port") != std::string::npos);
  CHECK(ErrorWith("/spec/engine/port", 7410).find("spec.engine.port") != std::string::npos);
  CHECK(ErrorWith("/spec/engine/env/0", {{"value", "1"}}).find("spec.engine.env[0].name") !=
        std::string::npos);
  CHECK(ErrorWith("/spec/engine/env/0",
                  {{"name", "A"}, {"value", "1"}, {"valueFrom", Json::object()}})
            .find("spec.engine.env[0].value") != std::string::npos);
  CHECK(ErrorWith("/spec/fastStart", {{"profile", "Fast"}})
            .find("spec.fastStart.profile: unknown value \"Fast\", expected one of Guarded") !=
        std::string::npos);
  CHECK(ErrorWith("/spec/fastStart", {{"weights", {{"fallback", "Peer"}}}})
            .find("spec.fastStart.weights.fallback") != std::string::npos);
  CHECK(ErrorWith("/spec/template", {{"metadata", {{"labels", {{"a", 1}}}}}})
            .find("spec.template.metadata.labels") != std::string::npos);
  CHECK(ErrorWith("/metadata/uid", Json()).find("metadata.uid") != std::string::npos);
  CHECK_FALSE(ModelServiceFromJson(Json::array()).ok());
  CHECK_FALSE(ModelServiceFromJson(Json()).ok());
}

TEST_CASE("an unreadable status reads as none and does not fail the object") {
  Json object = ServiceJson(1);
  object["status"] = {{"conditions", "nonsense"}, {"consecutiveFailures", 4}};
  const auto service = ModelServiceFromJson(object);
  REQUIRE(service.ok());
  CHECK(service->status == ServiceStatus());
}

TEST_CASE("the launch identity follows what decides the weights and nothing else") {
  const std::string base = LaunchIdentity(SpecWith("/spec/replicas", 1));
  CHECK(base.size() == 32);
  CHECK(base.find_first_not_of("0123456789abcdef") == std::string::npos);
  CHECK(LaunchIdentity(SpecWith("/spec/replicas", 7)) == base);
  CHECK(LaunchIdentity(SpecWith("/spec/engine/port", 8000)) == base);
  CHECK(LaunchIdentity(SpecWith("/spec/engine/resources", Json::object())) == base);
  CHECK(LaunchIdentity(SpecWith("/spec/fastStart", {{"profile", "Guarded"}})) == base);
  CHECK(LaunchIdentity(SpecWith("/spec/template", {{"spec", {{"nodeSelector", {{"a", "b"}}}}}})) ==
        base);

  CHECK(LaunchIdentity(SpecWith("/spec/model/revision", "v2")) != base);
  CHECK(LaunchIdentity(SpecWith("/spec/model/name", "other")) != base);
  CHECK(LaunchIdentity(SpecWith("/spec/model/storage/persistentVolumeClaim/path", "m2")) != base);
  CHECK(LaunchIdentity(SpecWith("/spec/engine/image", "vllm:2")) != base);
  CHECK(LaunchIdentity(SpecWith("/spec/engine/args", {"--max-model-len=512"})) != base);
  CHECK(LaunchIdentity(SpecWith("/spec/engine/env/0/value", "2")) != base);
  CHECK(LaunchIdentity(SpecWith("/spec/engine/port", 8001)) != base);
  const Json overlay = {
      {"spec", {{"containers", {{{"name", "engine"}, {"args", {"--dtype", "float16"}}}}}}}};
  CHECK(LaunchIdentity(SpecWith("/spec/template", overlay)) != base);
}

TEST_CASE("the launch identity is pinned, since running pods carry it across operator upgrades") {
  CHECK(LaunchIdentity(plan::testing::Service(1).spec) == "3381471e4247abef8346a577c2c269c4");
  CHECK(Revision(plan::testing::Service(1).spec) == "09e5c3a7a64773d929b99e95c959e655");
}

TEST_CASE("the revision follows everything that a running pod cannot take over") {
  const std::string base = Revision(SpecWith("/spec/replicas", 1));
  CHECK(Revision(SpecWith("/spec/replicas", 7)) == base);
  CHECK(Revision(SpecWith("/spec/guards", {{"replicas", 3}})) == base);
  CHECK(Revision(SpecWith("/spec/fastStart", {{"weights", {{"fallback", "None"}}}})) == base);
  CHECK(Revision(SpecWith("/spec/fastStart", {{"profile", "Shared"}})) == base);
  CHECK(Revision(SpecWith("/spec/fastStart", {{"state", {{"copies", 5}}}})) == base);
  CHECK(Revision(SpecWith("/spec/fastStart", {{"state", {{"reuse", false}}}})) != base);
  CHECK(Revision(SpecWith("/spec/engine/resources", Json::object())) != base);
  CHECK(Revision(SpecWith("/spec/template", {{"spec", {{"nodeSelector", {{"a", "b"}}}}}})) != base);
  CHECK(Revision(SpecWith("/spec/fastStart", {{"processStart", "Spawn"}})) != base);
  CHECK(Revision(SpecWith("/spec/engine/image", "vllm:2")) != base);
}

TEST_CASE("a condition keeps its transition time until its status changes") {
  const TimePoint t0 = *ParseTime("2026-01-01T00:00:00.5Z");
  const TimePoint t1 = *ParseTime("2026-01-01T00:01:00Z");
  std::vector<Condition> conditions;
  SetCondition(conditions, {"Available", "False", "A", "m", 1, t0}, t0);
  CHECK(FormatMicros(conditions[0].last_transition) == "2026-01-01T00:00:00.000000Z");
  SetCondition(conditions, {"Available", "False", "B", "n", 2, t1}, t1);
  REQUIRE(conditions.size() == 1);
  CHECK(conditions[0].reason == "B");
  CHECK(conditions[0].observed_generation == 2);
  CHECK(FormatSeconds(conditions[0].last_transition) == "2026-01-01T00:00:00Z");
  SetCondition(conditions, {"Available", "True", "C", "o", 2, t1}, t1);
  CHECK(FormatSeconds(conditions[0].last_transition) == "2026-01-01T00:01:00Z");
  SetCondition(conditions, {"Degraded", "False", "D", "", 2, t1}, t1);
  CHECK(conditions.size() == 2);
  CHECK(FindCondition(conditions, "Degraded")->reason == "D");
  CHECK(FindCondition(conditions, "Other") == nullptr);
}

TEST_CASE("a status reads back as it was written") {
  ServiceStatus status;
  status.observed_generation = 5;
  status.desired = status.replicas = 3;
  status.ready = 2;
  status.consecutive_failures = 2;
  status.last_failure = *ParseTime("2026-01-01T00:00:00.123456Z");
  status.selector = "a=b";
  SetCondition(status.conditions, {"Available", "True", "A", "m", 5, {}},
               *ParseTime("2026-01-01T00:00:00Z"));
  status.scale_outs.push_back({.pod = "demo-0",
                               .uid = "u",
                               .path = "Peer",
                               .reason = "Wake: no guards",
                               .seconds = 12.345,
                               .phases = {{"Schedule", 0.1}, {"Weights", 0.3}},
                               .bytes_by_source = {{"peer", 5}, {"storage", 0}},
                               .finished_at = *ParseTime("2026-01-01T00:00:00.000001Z")});
  const Json json = ToJson(status);
  CHECK(json["lastPath"] == "Peer");
  CHECK(json["lastSeconds"] == "12.35");
  CHECK(json["readyReplicas"] == 2);
  const auto back = StatusFromJson(json, "status");
  INFO(back.status().ToString());
  REQUIRE(back.ok());
  CHECK(*back == status);
  CHECK(ToJson(*back) == json);
}
