// Objects as the API server would send them, for tests of kubectl-rouse: ModelService demo and its
// pods.

#pragma once

#include <string>
#include <utility>
#include <vector>

#include "operator/api/names.h"
#include "operator/kubectl/text.h"
#include "operator/kubectl/view.h"
#include "operator/tests/state.h"

namespace rouse::kubectl::testing {

using plan::testing::kNow;
using plan::testing::kNowUs;
using plan::testing::ServiceJson;

inline constexpr std::int64_t kSecond = 1'000'000;
inline const Screen kPlain{.columns = 80, .colour = false};

/// Phases of these seconds, one after the other.
inline Timeline MakeTimeline(StartPath path, std::int64_t decided_at_us,
                             const std::vector<std::pair<std::string, double>>& phases) {
  Timeline timeline{
      .path = path, .decided_at_us = decided_at_us, .phases = {}, .lanes = {}, .total_us = 0};
  for (const auto& [name, seconds] : phases) {
    const std::int64_t end = timeline.total_us + static_cast<std::int64_t>(seconds * 1e6);
    timeline.phases.push_back({name, timeline.total_us, end});
    timeline.total_us = end;
  }
  return timeline;
}

inline Timeline StorageStart(std::int64_t decided_at_us) {
  return MakeTimeline(StartPath::kStorage, decided_at_us,
                      {{"Schedule", 1},
                       {"Hydrate", 1},
                       {"EngineStart", 8},
                       {"DeviceInit", 2},
                       {"Weights", 5},
                       {"Capture", 2},
                       {"FirstToken", 1}});
}

inline Timeline Wake(std::int64_t decided_at_us) {
  return MakeTimeline(
      StartPath::kWake, decided_at_us,
      {{"Command", 0.5}, {"Map", 1}, {"Weights", 0.5}, {"Resume", 0.5}, {"Canary", 0.5}});
}

/// A pod of demo whose agent has said `state`, decided `age` seconds ago.
inline Json Pod(const std::string& name, const std::string& state, std::int64_t age,
                const std::string& path = "Storage",
                const std::string& reason = "Wake: no guards; Peer: no other instance runs") {
  Json pod = {
      {"apiVersion", "v1"},
      {"kind", "Pod"},
      {"metadata",
       {{"name", name},
        {"namespace", "default"},
        {"uid", "uid-" + name},
        {"labels", {{api::kLabelModelService, "demo"}, {api::kLabelRole, "Active"}}},
        {"annotations",
         {{api::kAnnotationPath, path},
          {api::kAnnotationPathReason, reason},
          {api::kAnnotationDecidedAtUs, std::to_string(kNowUs - age * kSecond)}}},
        {"ownerReferences",
         Json::array({{{"kind", "ModelService"}, {"uid", "service-uid"}, {"controller", true}}})}}},
      {"spec", {{"nodeName", "node-a"}}},
      {"status", {{"phase", "Running"}, {"podIP", "10.0.0.1"}}}};
  if (!state.empty()) pod["metadata"]["annotations"][api::kAnnotationAgentState] = state;
  return pod;
}

inline Json WithTimeline(Json pod, const Timeline& timeline) {
  pod["metadata"]["annotations"][api::kAnnotationTimeline] = json::Dump(ToJson(timeline));
  return pod;
}

/// One that serves after a start of 20 s from storage.
inline Json Serving(const std::string& name, std::int64_t age) {
  Json pod = WithTimeline(Pod(name, "Serving", age), StorageStart(kNowUs - age * kSecond));
  pod["status"]["conditions"] = Json::array({{{"type", "Ready"}, {"status", "True"}}});
  return pod;
}

inline Json Annotated(Json pod, const char* key, const std::string& value) {
  pod["metadata"]["annotations"][key] = value;
  return pod;
}

inline Json WithCondition(Json service, const std::string& type, bool is_true,
                          const std::string& reason, const std::string& message) {
  service["status"]["conditions"].push_back({{"type", type},
                                             {"status", is_true ? "True" : "False"},
                                             {"reason", reason},
                                             {"message", message},
                                             {"lastTransitionTime", "2026-01-02T03:04:05Z"}});
  return service;
}

/// All as wanted: `replicas` of which as many serve.
inline Json Content(int replicas) {
  Json service = ServiceJson(replicas);
  service["status"]["readyReplicas"] = replicas;
  service["status"]["active"] = replicas;
  service = WithCondition(service, "Available", true, "InstancesServe", "all serve");
  service = WithCondition(service, "Progressing", false, "AsWanted", "nothing to do");
  return WithCondition(service, "Degraded", false, "NoFailures", "no start has failed lately");
}

inline ServiceView View(const Json& service, const std::vector<Json>& pods) {
  auto view = MakeView(service, pods);
  if (!view.ok()) throw std::runtime_error(view.status().ToString());
  return *view;
}

}  // namespace rouse::kubectl::testing
