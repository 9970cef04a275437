#include "operator/actuate/executor.h"

#include <algorithm>
#include <atomic>
#include <thread>

#include "common/log.h"
#include "operator/api/names.h"

namespace rouse::actuate {
namespace {

/// Claims under way at once: each waits for the API server and an agent.
constexpr std::size_t kClaimThreads = 16;

/// A guard that cannot sleep yet is asked again so soon.
constexpr std::chrono::milliseconds kSleepRetry{1'000};

/// The caches are behind: what they lack arrives meanwhile.
constexpr std::chrono::milliseconds kStaleRetry{200};

}  // namespace

struct Executor::Run {
  Executor& self;
  const api::ModelService& service;
  const plan::PodConfig& pods;
  const std::string key;
  Outcome outcome;
  bool create_failed = false;

  kube::ObjectName Name(const std::string& pod) const { return {service.metadata.ns, pod}; }

  template <typename Action>
  AgentName AgentOf(const Action& action) const {
    return {
        .ns = service.metadata.ns, .pod = action.pod, .uid = action.uid, .address = action.address};
  }

  void Fail(const Status& status) { outcome.errors.push_back(status.ToString()); }

  void Remember(const Json& pod) const {
    const auto instance = plan::InstanceFromPod(pod);
    if (!instance.ok()) return;
    self.pending_.Wrote(key, *instance, [&] {
      const auto known = self.cache_.Pod(Name(instance->name).Key());
      return known && known->uid == instance->uid && IsAsNew(*known, *instance);
    });
  }

  // Changes labels and annotations of the pod with this uid, or as `metadata` says of this version.
  Result<Json> Patch(const std::string& pod, Json metadata) const {
    auto patched =
        self.api_.MergePatch(kube::Pods(), Name(pod), {{"metadata", std::move(metadata)}},
                             {.field_manager = api::kFieldManager, .strategic = true});
    if (patched.ok()) Remember(*patched);
    return patched;
  }

  // Whoever is not what was planned for any more is looked at anew.
  static bool HasChanged(const Status& refusal) {
    return refusal.code() == StatusCode::kNotFound || refusal.code() == StatusCode::kConflict;
  }

  bool Took(const Result<Json>& patched) {
    if (patched.ok()) return true;
    if (HasChanged(patched.status())) {
      outcome.again = kStaleRetry;
    } else {
      Fail(patched.status());
    }
    return false;
  }

  // A pod of this name is there. Ours (an earlier call that got no answer, or a cache behind) is as
  // good as created; somebody else's is left alone and its name avoided.
  void AlreadyThere(const plan::CreateInstance& action, const Status& refusal) {
    auto there = self.api_.Get(kube::Pods(), Name(action.pod));
    if (!there.ok()) {
      create_failed = true;
      Fail(there.status().code() == StatusCode::kNotFound ? refusal : there.status());
      return;
    }
    if (kube::ControllerUid(*there) == service.metadata.uid) {
      Remember(*there);
      return;
    }
    self.pending_.Taken(key, action.pod);
    outcome.replan = true;
    outcome.notes.push_back(
        {true, "NameTaken", "CreatePod",
         "pod " + action.pod +
             " exists and is not of this ModelService: its "
             "name is left out; delete the pod or rename it if that is not wanted"});
  }

  void Do(const plan::CreateInstance& action) {
    if (create_failed) return;
    if (const Status ready = self.prepare_(service.metadata.ns); !ready.ok()) {
      create_failed = true;
      return Fail(ready);
    }
    auto created = self.api_.Create(kube::Pods(), plan::RenderPod(service, action, pods));
    if (created.ok()) {
      Remember(*created);
      const bool guard = action.role == Role::kGuard;
      outcome.notes.push_back({false, guard ? "GuardCreated" : "InstanceCreated", "CreatePod",
                               std::string("created ") + (guard ? "guard " : "") + action.pod +
                                   ", path " + std::string(ToString(action.path)) + " (" +
                                   action.path_reason + ")"});
      return;
    }
    if (created.status().code() == StatusCode::kAlreadyExists) {
      AlreadyThere(action, created.status());
      return;
    }
    create_failed = true;
    Fail(created.status());
  }

  // Runs beside other claims: touches nothing of the run but what is thread-safe.
  Outcome Claim(const plan::ClaimGuard& action) const {
    Outcome out;
    const auto begun = std::chrono::steady_clock::now();
    Json annotations = {
        {api::kAnnotationDecidedAtUs, std::to_string(api::ToMicros(action.decided_at))},
        {api::kAnnotationPathReason, action.reason},
        {api::kAnnotationActivePorts, nullptr}};  // All of them.
    if (action.wake) annotations[api::kAnnotationPath] = ToString(StartPath::kWake);
    // Who has slept for long has no connection any more; a handshake takes less than the claim.
    std::jthread connecting;
    if (action.wake) {
      connecting = std::jthread([&] {
        pthread_setname_np(pthread_self(), "connect");
        self.agents_.Connect(AgentOf(action));
      });
    }
    const auto claimed =
        Patch(action.pod, {{"resourceVersion", action.resource_version},
                           {"labels", {{api::kLabelRole, ToString(Role::kActive)}}},
                           {"annotations", std::move(annotations)}});
    if (!claimed.ok()) {
      if (HasChanged(claimed.status())) {
        out.again = kStaleRetry;
      } else {
        out.errors.push_back(claimed.status().ToString());
      }
      return out;
    }
    if (action.wake) {
      connecting.join();
      const auto told = self.agents_.TellRole(AgentOf(action),
                                              {.role = Role::kActive,
                                               .peers = action.peers,
                                               .decided_at_us = api::ToMicros(action.decided_at)});
      if (!told.ok()) {
        UndoClaim(action, told.status(), out);
        const auto took = std::chrono::steady_clock::now() - begun;
        out.failed_wakes.push_back(std::chrono::duration<double>(took).count());
        return out;
      }
    }
    out.notes.push_back(
        {false, action.wake ? "GuardWoken" : "GuardTaken", "ClaimGuard",
         action.pod + (action.wake ? " wakes (" : " is a replica (") + action.reason + ")"});
    return out;
  }

  void UndoClaim(const plan::ClaimGuard& action, const Status& why, Outcome& out) const {
    const plan::FailedWakes failed{
        .count = action.failed_wakes.count + 1, .at = action.decided_at, .reason = why.message()};
    // Whoever else has written meanwhile (its agent, the kubelet) does not own the role.
    const auto undone = Patch(action.pod, MarkedAsGuard(action.uid, failed));
    out.notes.push_back({true, "GuardNotWoken", "ClaimGuard",
                         action.pod + " could not be woken: " + why.message()});
    // Else its lease ends in time.
    if (!undone.ok()) out.errors.push_back(undone.status().ToString());
    out.replan = undone.ok();
  }

  static Json MarkedAsGuard(const std::string& uid, const plan::FailedWakes& failed) {
    return {{"uid", uid},
            {"labels", {{api::kLabelRole, ToString(Role::kGuard)}}},
            {"annotations",
             {{api::kAnnotationFailedWakes, json::Canonical(ToJson(failed))},
              {api::kAnnotationActivePorts, ""}}}};
  }

  void Do(const std::vector<const plan::ClaimGuard*>& claims) {
    std::vector<Outcome> outcomes(claims.size());
    std::atomic<std::size_t> next{0};
    const auto work = [&] {
      for (std::size_t i = next++; i < claims.size(); i = next++) outcomes[i] = Claim(*claims[i]);
    };
    {
      std::vector<std::jthread> threads;
      for (std::size_t i = 1; i < std::min(claims.size(), kClaimThreads); ++i) {
        threads.emplace_back([&] {
          pthread_setname_np(pthread_self(), "claim");
          work();
        });
      }
      work();
    }
    for (Outcome& one : outcomes) {
      outcome.errors.insert(outcome.errors.end(), one.errors.begin(), one.errors.end());
      outcome.notes.insert(outcome.notes.end(), one.notes.begin(), one.notes.end());
      outcome.failed_wakes.insert(outcome.failed_wakes.end(), one.failed_wakes.begin(),
                                  one.failed_wakes.end());
      outcome.replan = outcome.replan || one.replan;
      if (one.again) outcome.again = one.again;
    }
  }

  void Do(const plan::ClaimGuard& action) { Do(std::vector{&action}); }

  void Do(const plan::ReleaseGuard& action) {
    Json metadata = MarkedAsGuard(action.uid, action.failed_wakes);
    metadata["resourceVersion"] = action.resource_version;
    if (!Took(Patch(action.pod, std::move(metadata)))) return;
    outcome.notes.push_back({true, "GuardNotWoken", "ReleaseGuard",
                             action.pod + " is a guard again: " + action.failed_wakes.reason});
  }

  void Do(const plan::MakeGuard& action) {
    const auto made = Patch(action.pod, {{"uid", action.uid},
                                         {"labels", {{api::kLabelRole, ToString(Role::kGuard)}}},
                                         {"annotations", {{api::kAnnotationActivePorts, ""}}}});
    if (!Took(made)) return;
    outcome.notes.push_back({false, "GuardMade", "MakeGuard",
                             action.pod + " becomes a guard (ScaleIn: " + action.reason + ")"});
  }

  void Do(const plan::PutToSleep& action) {
    const auto told = self.agents_.TellRole(AgentOf(action), {.role = Role::kGuard});
    if (told.ok()) return;
    log::Info("guard not asleep yet",
              {{"modelservice", key}, {"pod", action.pod}, {"why", told.status().message()}});
    outcome.again = kSleepRetry;
  }

  // Server-side apply: a merge patch would replace the kubelet's conditions too.
  void Do(const plan::SetServing& action) {
    const Json object = {
        {"apiVersion", "v1"},
        {"kind", "Pod"},
        {"metadata",
         {{"name", action.pod}, {"namespace", service.metadata.ns}, {"uid", action.uid}}},
        {"status",
         {{"conditions",
           {{{"type", api::kConditionServing},
             {"status", action.may_serve ? "True" : "False"},
             {"reason", action.may_serve ? "Replica" : "NotAReplica"}}}}}}};
    const auto applied = self.api_.Apply(
        kube::Pods(), object,
        {.field_manager = api::kFieldManager, .force = true, .subresource = "status"});
    if (Took(applied)) Remember(*applied);
  }

  void Do(const plan::Leave& action) {
    Took(Patch(action.pod, {{"uid", action.uid},
                            {"annotations",
                             {{api::kAnnotationLeaving, json::Canonical(ToJson(action.leaving))},
                              {api::kAnnotationActivePorts, ""}}}}));
  }

  // A Service of this name that is somebody else's is left alone.
  void Do(const plan::EnsureEndpoint& action) {
    const Json wanted = plan::RenderEndpoint(service);
    auto written = action.exists
                       ? self.api_.Apply(kube::Services(), wanted,
                                         {.field_manager = api::kFieldManager, .subresource = ""})
                       : self.api_.Create(kube::Services(), wanted);
    if (written.status().code() == StatusCode::kAlreadyExists) {
      const auto there = self.api_.Get(kube::Services(), Name(service.metadata.name));
      if (there.ok() && kube::ControllerUid(*there) != service.metadata.uid) {
        self.pending_.EndpointTaken(key);
        outcome.notes.push_back(
            {true, "ServiceNameTaken", "CreateService",
             "Service " + service.metadata.name +
                 " exists and is not of this ModelService: it is left as it is"});
        return;
      }
      written = there;
    }
    if (!written.ok()) return Fail(written.status());
    self.pending_.WroteEndpoint(key, plan::EndpointFromService(*written));
  }

  // A conflict means that the pod of this name is another one by now, or that the server is busy.
  bool IsGone(const plan::DeleteInstance& action, const Status& refusal) {
    if (refusal.code() == StatusCode::kNotFound) return true;
    if (refusal.code() != StatusCode::kConflict) return false;
    const auto there = self.api_.Get(kube::Pods(), Name(action.pod));
    if (!there.ok()) return there.status().code() == StatusCode::kNotFound;
    return kube::MetaString(*there, "uid") != action.uid;
  }

  void Do(const plan::DeleteInstance& action) {
    kube::DeleteOptions options;
    options.uid = action.uid;
    const Status deleted = self.api_.Delete(kube::Pods(), Name(action.pod), options);
    if (!deleted.ok() && !IsGone(action, deleted)) {
      Fail(deleted);
      return;
    }
    self.pending_.Deleted(key, action.uid);
    if (!deleted.ok()) return;
    outcome.notes.push_back({false, "InstanceDeleted", "DeletePod",
                             "deleted " + action.pod + " (" +
                                 std::string(plan::ToString(action.cause)) + ": " + action.reason +
                                 ")"});
  }
};

Outcome Executor::Perform(const api::ModelService& service,
                          const std::vector<plan::Action>& actions, const plan::PodConfig& pods) {
  Run run{.self = *this,
          .service = service,
          .pods = pods,
          .key = kube::ObjectName{service.metadata.ns, service.metadata.name}.Key(),
          .outcome = {},
          .create_failed = false};
  for (auto next = actions.begin(); next != actions.end();) {
    if (!may_act_()) {
      run.outcome.errors.push_back("this operator does not lead any more");
      break;
    }
    std::vector<const plan::ClaimGuard*> claims;
    const auto begin = next;
    for (; next != actions.end() && std::holds_alternative<plan::ClaimGuard>(*next); ++next) {
      claims.push_back(&std::get<plan::ClaimGuard>(*next));
    }
    if (claims.empty()) ++next;
    for (auto action = begin; action != next; ++action) {
      log::Info("action", {{"modelservice", run.key}, {"action", plan::ToString(*action)}});
    }
    if (claims.empty()) {
      std::visit([&](const auto& a) { run.Do(a); }, *begin);
    } else {
      run.Do(claims);
    }
  }
  for (const std::string& error : run.outcome.errors) {
    log::Warning("action failed", {{"modelservice", run.key}, {"error", error}});
  }
  return std::move(run.outcome);
}

}  // namespace rouse::actuate
