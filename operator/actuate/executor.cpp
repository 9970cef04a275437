#include "operator/actuate/executor.h"

#include "common/log.h"
#include "operator/actuate/claims.h"
#include "operator/actuate/pod_writer.h"
#include "operator/api/names.h"

namespace rouse::actuate {
namespace {

/// A guard that cannot sleep yet is asked again so soon.
constexpr std::chrono::milliseconds kSleepRetry{1'000};

}  // namespace

struct Executor::Run {
  Executor& self;
  const api::ModelService& service;
  const plan::PodConfig& pods;
  const PodWriter writer;
  Outcome outcome;
  bool create_failed = false;

  void Fail(const Status& status) { outcome.errors.push_back(status.ToString()); }

  bool Took(const Result<Json>& patched) {
    if (!patched.ok()) outcome.Refused(patched.status());
    return patched.ok();
  }

  // A pod of this name is there. Ours (an earlier call that got no answer, or a cache behind) is as
  // good as created; somebody else's is left alone and its name avoided.
  void AlreadyThere(const plan::CreateInstance& action, const Status& refusal) {
    auto there = self.api_.Get(kube::Pods(), writer.Name(action.pod));
    if (!there.ok()) {
      create_failed = true;
      Fail(there.status().code() == StatusCode::kNotFound ? refusal : there.status());
      return;
    }
    if (kube::ControllerUid(*there) == service.metadata.uid) {
      writer.Remember(*there);
      return;
    }
    self.pending_.Taken(writer.key(), action.pod);
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
      writer.Remember(*created);
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

  void Do(const std::vector<const plan::ClaimGuard*>& claims) {
    outcome.Add(ClaimGuards(claims, writer, self.agents_, self.confirm_));
  }

  void Do(const plan::ClaimGuard& action) { Do(std::vector{&action}); }

  void Do(const plan::ReleaseGuard& action) {
    Json metadata = MarkedAsGuard(action.uid, action.failed_wakes);
    metadata["resourceVersion"] = action.resource_version;
    if (!Took(writer.Patch(action.pod, std::move(metadata)))) return;
    outcome.notes.push_back({true, "GuardNotWoken", "ReleaseGuard",
                             action.pod + " is a guard again: " + action.failed_wakes.reason});
  }

  void Do(const plan::MakeGuard& action) {
    const auto made =
        writer.Patch(action.pod, {{"uid", action.uid},
                                  {"labels", {{api::kLabelRole, ToString(Role::kGuard)}}},
                                  {"annotations", {{api::kAnnotationActivePorts, ""}}}});
    if (!Took(made)) return;
    outcome.notes.push_back({false, "GuardMade", "MakeGuard",
                             action.pod + " becomes a guard (ScaleIn: " + action.reason + ")"});
  }

  void Do(const plan::PutToSleep& action) {
    const auto told =
        self.agents_.TellRole(AgentOf(service.metadata.ns, action), {.role = Role::kGuard});
    if (told.ok()) return;
    log::Info(
        "guard not asleep yet",
        {{"modelservice", writer.key()}, {"pod", action.pod}, {"why", told.status().message()}});
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
    if (Took(applied)) writer.Remember(*applied);
  }

  void Do(const plan::Leave& action) {
    Took(writer.Patch(action.pod,
                      {{"uid", action.uid},
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
      const auto there = self.api_.Get(kube::Services(), writer.Name(service.metadata.name));
      if (there.ok() && kube::ControllerUid(*there) != service.metadata.uid) {
        self.pending_.EndpointTaken(writer.key());
        outcome.notes.push_back(
            {true, "ServiceNameTaken", "CreateService",
             "Service " + service.metadata.name +
                 " exists and is not of this ModelService: it is left as it is"});
        return;
      }
      written = there;
    }
    if (!written.ok()) return Fail(written.status());
    self.pending_.WroteEndpoint(writer.key(), plan::EndpointFromService(*written));
  }

  // A conflict means that the pod of this name is another one by now, or that the server is busy.
  bool IsGone(const plan::DeleteInstance& action, const Status& refusal) {
    if (refusal.code() == StatusCode::kNotFound) return true;
    if (refusal.code() != StatusCode::kConflict) return false;
    const auto there = self.api_.Get(kube::Pods(), writer.Name(action.pod));
    if (!there.ok()) return there.status().code() == StatusCode::kNotFound;
    return kube::MetaString(*there, "uid") != action.uid;
  }

  void Do(const plan::DeleteInstance& action) {
    kube::DeleteOptions options;
    options.uid = action.uid;
    const Status deleted = self.api_.Delete(kube::Pods(), writer.Name(action.pod), options);
    if (!deleted.ok() && !IsGone(action, deleted)) {
      Fail(deleted);
      return;
    }
    self.pending_.Deleted(writer.key(), action.uid);
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
          .writer = PodWriter(api_, cache_, pending_,
                              kube::ObjectName{service.metadata.ns, service.metadata.name}.Key()),
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
      log::Info("action",
                {{"modelservice", run.writer.key()}, {"action", plan::ToString(*action)}});
    }
    if (claims.empty()) {
      std::visit([&](const auto& a) { run.Do(a); }, *begin);
    } else {
      run.Do(claims);
    }
  }
  for (const std::string& error : run.outcome.errors) {
    log::Warning("action failed", {{"modelservice", run.writer.key()}, {"error", error}});
  }
  return std::move(run.outcome);
}

}  // namespace rouse::actuate
