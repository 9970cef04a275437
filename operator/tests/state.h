// Builders for tests of the planner: "a ModelService demo with two replicas, demo-0 serves on
// node-a, demo-1 starts".

#pragma once

#include <catch2/catch.hpp>
#include <string>
#include <utility>
#include <vector>

#include "operator/api/launch_identity.h"
#include "operator/plan/observed.h"
#include "operator/plan/planner.h"

namespace rouse::plan::testing {

inline constexpr std::int64_t kNowUs = 1'800'000'000'000'000;
inline const TimePoint kNow = api::FromMicros(kNowUs);

using Lines = std::vector<std::string>;

inline Lines Printed(const Plan& plan) {
  Lines out;
  for (const Action& action : plan.actions) out.push_back(ToString(action));
  return out;
}

inline const api::Condition& ConditionOf(const Plan& plan, const char* type) {
  const api::Condition* condition = api::FindCondition(plan.status.conditions, type);
  REQUIRE(condition != nullptr);
  return *condition;
}

inline Json ServiceJson(int replicas) {
  return Json::parse(R"({
    "apiVersion": "rouse.dev/v1alpha1", "kind": "ModelService",
    "metadata": {"name": "demo", "namespace": "default", "uid": "service-uid", "generation": 3,
                 "resourceVersion": "77", "creationTimestamp": "2026-01-02T03:04:05Z"},
    "spec": {"replicas": )" +
                     std::to_string(replicas) + R"(,
      "model": {"name": "org/model", "revision": "main",
                "storage": {"persistentVolumeClaim": {"claimName": "models", "path": "m"}}},
      "engine": {"image": "vllm:1", "args": ["--max-model-len=256"],
                 "env": [{"name": "A", "value": "1"}],
                 "resources": {"limits": {"nvidia.com/gpu": "1"}}}},
    "status": {"observedGeneration": 3}})");
}

inline api::ModelService Service(int replicas) {
  return *api::ModelServiceFromJson(ServiceJson(replicas));
}

/// Its Kubernetes Service as it should be.
inline Endpoint EndpointOf(const api::ModelService& service) {
  Json rendered = RenderEndpoint(service);
  rendered["metadata"]["uid"] = "endpoint-uid";
  return EndpointFromService(rendered);
}

class State {
 public:
  /// `gated`: its pods have the readiness gate, as all that we make have.
  explicit State(int replicas, bool gated = false) : gated_(gated) {
    observed_.service = Service(replicas);
    observed_.endpoint = EndpointOf(observed_.service);
  }

  State& Fallback(api::Fallback fallback) {
    observed_.service.spec.fast_start.weights_fallback = fallback;
    return *this;
  }
  State& Source(api::WeightSource source) {
    observed_.service.spec.fast_start.weights_source = source;
    return *this;
  }

  /// A pod that was decided `age` ago and has no node yet. Call after the spec is as wanted.
  Instance Pod(const std::string& name, std::chrono::seconds age) const {
    Instance i;
    i.ns = "default";
    i.name = name;
    i.uid = "uid-" + name;
    i.service = "demo";
    i.owner_uid = "service-uid";
    i.launch_identity = api::LaunchIdentity(observed_.service.spec);
    i.revision = api::Revision(observed_.service.spec);
    i.decided_at = kNow - age;
    i.phase = "Pending";
    i.gated = i.may_serve = gated_;
    return i;
  }

  State& Pending(const std::string& name, std::chrono::seconds age = std::chrono::seconds(5)) {
    return Add(Pod(name, age));
  }

  State& Starting(const std::string& name, StartPath path = StartPath::kStorage,
                  AgentState state = AgentState::kReady,
                  std::chrono::seconds age = std::chrono::seconds(10)) {
    Instance i = Pod(name, age);
    i.path = path;
    i.node = "node-a";
    i.phase = "Running";
    i.started_at = i.decided_at + std::chrono::seconds(1);
    i.agent_state = state;
    i.address = "https://10.0.0.1:7411";
    return Add(std::move(i));
  }

  State& Serving(const std::string& name, const std::string& node = "node-a",
                 std::chrono::seconds age = std::chrono::seconds(600)) {
    Instance i = Pod(name, age);
    i.node = node;
    i.phase = "Running";
    i.ready = true;
    i.started_at = i.decided_at + std::chrono::seconds(1);
    i.agent_state = AgentState::kServing;
    i.address = "https://" + name + ":7411";
    i.weights = WeightsReport{.form = WeightForm::kLoaded,
                              .identity = std::string(64, 'a'),
                              .bytes = 1000,
                              .ranks = 1,
                              .servable = true};
    i.bytes = {.peer = 0, .storage = 1000};
    i.timeline = Timeline{.path = StartPath::kStorage,
                          .decided_at_us = api::ToMicros(i.decided_at),
                          .phases = {{"Schedule", 0, 1'000'000}, {"Hydrate", 1'000'000, 3'500'000}},
                          .lanes = {},
                          .total_us = 3'500'000};
    return Add(std::move(i));
  }

  State& Guards(int replicas) {
    observed_.service.spec.guard_replicas = replicas;
    return *this;
  }

  /// A guard that sleeps.
  State& Guard(const std::string& name, const std::string& node = "node-a",
               std::chrono::seconds age = std::chrono::seconds(300)) {
    Serving(name, node, age);
    Instance& guard = (*this)[name];
    guard.role = Role::kGuard;
    guard.resource_version = "42";
    guard.agent_state = AgentState::kAsleep;
    guard.weights.reset();
    guard.ready = guard.may_serve = false;
    return *this;
  }

  State& Add(Instance instance) {
    observed_.instances.push_back(std::move(instance));
    return *this;
  }

  Instance& operator[](const std::string& name) {
    for (Instance& i : observed_.instances) {
      if (i.name == name) return i;
    }
    throw std::runtime_error("no instance " + name);
  }

  Observed& Done() { return observed_; }

 private:
  bool gated_;
  Observed observed_;
};

}  // namespace rouse::plan::testing
