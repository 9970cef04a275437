#include "operator/actuate/executor.h"

#include "common/log.h"

namespace rouse::actuate {

struct Executor::Run {
  Executor& self;
  const api::ModelService& service;
  const plan::PodConfig& pods;
  const std::string key;
  Outcome outcome;
  bool create_failed = false;

  kube::ObjectName Name(const std::string& pod) const { return {service.metadata.ns, pod}; }

  void Fail(const Status& status) { outcome.errors.push_back(status.ToString()); }

  void Remember(const Json& pod) {
    const auto instance = plan::InstanceFromPod(pod);
    if (!instance.ok()) return;
    self.pending_.Created(key, *instance, [&] {
      const auto known = self.cache_.Pod(Name(instance->name).Key());
      return known && known->uid == instance->uid;
    });
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
    auto created = self.api_.Create(kube::Pods(), plan::RenderPod(service, action, pods));
    if (created.ok()) {
      Remember(*created);
      outcome.notes.push_back({false, "InstanceCreated", "CreatePod",
                               "created " + action.pod + ", path " +
                                   std::string(ToString(action.path)) + " (" + action.path_reason +
                                   ")"});
      return;
    }
    if (created.status().code() == StatusCode::kAlreadyExists) {
      AlreadyThere(action, created.status());
      return;
    }
    create_failed = true;
    Fail(created.status());
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
  for (const plan::Action& action : actions) {
    if (!may_act_()) {
      run.outcome.errors.push_back("this operator does not lead any more");
      break;
    }
    log::Info("action", {{"modelservice", run.key}, {"action", plan::ToString(action)}});
    std::visit([&](const auto& a) { run.Do(a); }, action);
  }
  for (const std::string& error : run.outcome.errors) {
    log::Warning("action failed", {{"modelservice", run.key}, {"error", error}});
  }
  return std::move(run.outcome);
}

}  // namespace rouse::actuate
