// An API server in memory, and the operator's caches fed from it when the test says so. Between two
// feedings the cache is as stale as the test wants it.

#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "operator/actuate/reconciler.h"
#include "operator/actuate/reports.h"
#include "operator/api/names.h"
#include "operator/tests/fake_api.h"
#include "operator/tests/state.h"

namespace rouse::actuate::testing {

using plan::testing::kNow;
using plan::testing::ServiceJson;

inline constexpr char kKey[] = "default/demo";

/// Agents in memory: keeps what they are told, and answers as it is set.
class FakeAgents : public Agents {
 public:
  void KeepConnected(const std::string& service, std::vector<AgentName> agents) override {
    const std::lock_guard lock(mutex_);
    auto& names = kept[service];
    names.clear();
    for (const AgentName& agent : agents) names.push_back(agent.pod);
  }

  Result<RoleResponse> TellRole(const AgentName& agent, const RoleRequest& request) override {
    std::lock_guard lock(mutex_);
    told.emplace_back(agent, request);
    if (!answer.ok()) return answer;
    if (on_told) on_told();
    return RoleResponse{.state = request.role == Role::kActive ? AgentState::kWaking
                                                               : AgentState::kSleeping};
  }

  std::vector<std::pair<AgentName, RoleRequest>> told;
  std::map<std::string, std::vector<std::string>> kept;  ///< Pods, by ModelService.
  Status answer;
  std::function<void()> on_told;  ///< Before it answers.

 private:
  std::mutex mutex_;
};

/// One process of the operator: what it remembers dies with it.
class Process {
 public:
  explicit Process(kube::FakeApi& api)
      : cache([](const std::string&) {},
              [this](const plan::Instance* before, const plan::Instance* after) {
                const plan::Instance& pod = after != nullptr ? *after : *before;
                pending.Seen(ServiceKey(pod), pod.uid, after);
              }),
        reports(
            api, cache, metrics, {}, [this] { return now; },
            [this](const PodLoad& load) { loads.push_back(load); }),
        api_(api) {
    ReconcilerOptions options;
    options.pods.agent_image = "agent:1";
    options.pods.agent_facing_url = "https://10.96.0.7:7482";
    options.clock = [this] { return now; };
    options.confirm = [this] {
      ++confirmed;
      return confirm_answer;
    };
    options.prepare = [this](const std::string& ns) {
      prepared.push_back(ns);
      return prepare_answer;
    };
    reconciler = std::make_unique<Reconciler>(
        api, agents, cache, pending, metrics,
        [this](const api::ObjectMeta&, const plan::Note& note) { notes.push_back(note); },
        [this] { return leads; }, options);
  }

  /// A full list arrives from the API server.
  void Sync() {
    Feed(cache.service_sink(), kube::ModelServices());
    Feed(cache.pod_sink(), kube::Pods());
    Feed(cache.endpoint_sink(), kube::Services());
  }

  std::vector<std::string> Reasons() const {
    std::vector<std::string> out;
    for (const plan::Note& note : notes) out.push_back(note.reason);
    return out;
  }

  FakeAgents agents;
  Pending pending;
  Metrics metrics;
  Cache cache;
  std::vector<PodLoad> loads;
  Reports reports;
  std::unique_ptr<Reconciler> reconciler;
  std::vector<plan::Note> notes;
  std::vector<std::string> prepared;  ///< Namespaces, before pods were made there.
  Status prepare_answer;
  api::TimePoint now = kNow;
  bool leads = true;
  int confirmed = 0;  ///< Times that it was asked for.
  Status confirm_answer;

 private:
  void Feed(kube::StoreSink& sink, const kube::Resource& resource) {
    using Kind = kube::StoreEvent::Kind;
    sink.Take({Kind::kInitBegin, nullptr});
    for (const kube::Json& object : api_.Objects(resource)) sink.Take({Kind::kInitApply, object});
    sink.Take({Kind::kInitDone, nullptr});
  }

  kube::FakeApi& api_;
};

/// The Kubernetes Service of the ModelService that is there, as it should be.
inline void PutEndpoint(kube::FakeApi& api) {
  api.Put(kube::Services(),
          plan::RenderEndpoint(*api::ModelServiceFromJson(api.Objects(kube::ModelServices())[0])));
}

inline void PutService(kube::FakeApi& api, int replicas, const std::string& source = "Storage") {
  kube::Json service = ServiceJson(replicas);
  service["spec"]["fastStart"] = {{"weights", {{"source", source}}}};
  api.Put(kube::ModelServices(), service);
  PutEndpoint(api);
}

inline std::vector<std::string> PodNames(kube::FakeApi& api) {
  std::vector<std::string> out;
  for (const kube::Json& pod : api.Objects(kube::Pods())) out.push_back(kube::NameOf(pod).name);
  return out;
}

inline kube::Json PodJson(kube::FakeApi& api, const std::string& name) {
  auto pod = api.Get(kube::Pods(), {"default", name});
  return pod.ok() ? *pod : kube::Json();
}

/// The calls that change something, without the objects' namespaces.
inline std::vector<std::string> Writes(kube::FakeApi& api) {
  std::vector<std::string> out;
  for (const std::string& call : api.calls()) {
    if (!call.starts_with("get ") && !call.starts_with("list ")) out.push_back(call);
  }
  return out;
}

}  // namespace rouse::actuate::testing
