#include "operator/kubectl/view.h"

#include <algorithm>
#include <tuple>

#include "operator/kubectl/text.h"
#include "operator/plan/objects.h"

namespace rouse::kubectl {
namespace {

// Sorts demo-10 after demo-9.
std::tuple<int, std::string> PlaceOf(const plan::Instance& instance) {
  return {plan::Ordinal(instance.name, instance.service).value_or(1 << 30), instance.name};
}

void Append(std::string& text, const std::string& more) {
  if (more.empty()) return;
  text += (text.empty() ? "" : "; ") + more;
}

}  // namespace

Result<ServiceView> MakeView(const Json& service, const std::vector<Json>& pods) {
  ServiceView view;
  auto read = api::ModelServiceFromJson(service);
  if (read.ok()) {
    view.service = *std::move(read);
  } else {
    view.unreadable = read.status();
    ROUSE_ASSIGN_OR_RETURN(view.service.metadata, api::ObjectMetaFromJson(service));
    view.service.spec.replicas = 0;
    if (auto status = api::StatusFromJson(plan::At(service, "status"), "status"); status.ok()) {
      view.service.status = *std::move(status);
    }
  }
  const api::ObjectMeta& meta = view.service.metadata;
  for (const Json& pod : pods) {
    auto instance = plan::InstanceFromPod(pod);
    if (!instance.ok() || instance->service != meta.name || instance->ns != meta.ns) continue;
    if (instance->owner_uid == meta.uid) {
      view.instances.push_back(*std::move(instance));
    } else {
      view.others.push_back(instance->name);
    }
  }
  std::sort(view.instances.begin(), view.instances.end(),
            [](const auto& a, const auto& b) { return PlaceOf(a) < PlaceOf(b); });
  return view;
}

std::string ServeText(int ready, int wanted) {
  return std::to_string(ready) + " of " + Plural(wanted, "instance") +
         (wanted == 1 ? " serves" : " serve");
}

std::string Reported(const plan::Instance& instance, const char* annotation) {
  const auto it = instance.reported.find(annotation);
  return it == instance.reported.end() ? "" : it->second;
}

bool HasFailed(const plan::Instance& instance) {
  return instance.agent_state == AgentState::kFailed || instance.phase == "Failed";
}

std::string StateOf(const plan::Instance& instance) {
  if (instance.deleting) return "Stopping";
  if (HasFailed(instance)) return "Failed";
  if (instance.leaving) return "Leaving";
  if (instance.node_lost) return "NodeLost";
  if (!instance.crash_looping.empty()) return "CrashLoop";
  if (!instance.unschedulable.empty()) return "Unschedulable";
  if (instance.agent_state) {
    // The agent serves before the kubelet has found it ready.
    if (instance.agent_state == AgentState::kServing && instance.role == Role::kActive &&
        !instance.ready) {
      return "NotReady";
    }
    return std::string(ToString(*instance.agent_state));
  }
  return instance.node.empty() ? "Pending" : "Scheduled";
}

std::string NoteOf(const plan::Instance& instance) {
  std::string text;
  if (instance.leaving) Append(text, instance.leaving->reason);
  Append(text, instance.unschedulable);
  Append(text, instance.crash_looping);
  if (instance.phase == "Failed") Append(text, instance.phase_message);
  const bool settled =
      instance.agent_state == AgentState::kServing || instance.agent_state == AgentState::kAsleep;
  if (!settled) Append(text, instance.agent_message);
  Append(text, instance.transport_fallback);
  Append(text, instance.state_miss);
  if (instance.failed_wakes.count > 0) {
    Append(text, "not woken (" + std::to_string(instance.failed_wakes.count) +
                     "): " + instance.failed_wakes.reason);
  }
  return text;
}

std::vector<Concern> ConcernsOf(const ServiceView& view) {
  const api::ServiceStatus& status = view.service.status;
  std::vector<Concern> concerns;
  if (!view.unreadable.ok()) {
    concerns.push_back({true, "Spec", "InvalidSpec", view.unreadable.message()});
  }
  if (status.conditions.empty()) {
    concerns.push_back({true, "Status", "NotObserved",
                        "the operator has not looked at it yet: `kubectl rouse doctor` tells "
                        "whether one runs"});
  } else if (status.observed_generation != view.service.metadata.generation) {
    concerns.push_back(
        {false, "Status", "Behind", "the operator has not seen the last change of the spec yet"});
  }
  for (const api::Condition& c : status.conditions) {
    const bool is_true = c.status == "True";
    if (c.type == api::kConditionAvailable && !is_true && c.reason != "ScaledToZero") {
      concerns.push_back({true, c.type, c.reason, c.message});
    }
    if (c.type == api::kConditionDegraded && is_true) {
      concerns.push_back({true, c.type, c.reason, c.message});
    }
    if (c.type == api::kConditionProgressing && is_true) {
      const bool stuck = c.reason == "Unschedulable" || c.reason == "BackingOff";
      concerns.push_back({stuck, c.type, c.reason, c.message});
    }
    if (c.type == api::kConditionStateReuse && !is_true && c.reason != "SwitchedOff") {
      concerns.push_back({true, c.type, c.reason, c.message});
    }
  }
  return concerns;
}

}  // namespace rouse::kubectl
