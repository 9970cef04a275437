#include "operator/kubectl/doctor_services.h"

#include <algorithm>
#include <map>

#include "operator/api/names.h"
#include "operator/kubectl/explain.h"
#include "operator/plan/objects.h"

namespace rouse::kubectl {
namespace {

using plan::At;
using plan::Text;
using Level = Finding::Level;

/// An agent reports a second after its container runs, which an image pull comes before.
constexpr std::chrono::seconds kFirstReport{120};
/// Older Events of mounts are of what has passed.
constexpr std::chrono::minutes kRecent{15};

struct Remedy {
  std::string_view reason;
  std::string_view text;
};
// By the reason of a condition; NAME and NS are put in.
constexpr Remedy kRemedies[] = {
    {"InvalidSpec", "kubectl -n NS edit modelservice/NAME"},
    {"NotObserved", "see the findings about the operator"},
    {"Behind", "see the findings about the operator, if this stays"},
    {"NoInstanceServes", "kubectl rouse explain NAME -n NS"},
    {"InstancesFail",
     "the logs of the pods' containers agent and engine; kubectl rouse explain NAME -n NS"},
    {"BackingOff",
     "the logs of the pods' containers agent and engine; any change of the spec ends the wait"},
    {"Unschedulable",
     "add or free what the scheduler names, or ask for less in spec.engine.resources"},
    {"NodeLost", "bring the node back, or delete it: kubectl delete node"},
    {"ActionFailed", "mend what the message names: a right, a quota, an admission policy"},
    {"PerPodVariable",
     "give the variable one value in all pods, or set spec.fastStart.state.reuse to false"},
    {"TransportFallback",
     "give agents the RDMA devices (chart value agent.rdma.resourceName) and a limit of locked "
     "memory that the weights fit in; UCX_TLS=tcp in their environment if TCP is meant"},
    {"CachesNotUsed",
     "make what differs in the key alike in all pods: docs/state-reuse.md names the parts"}};

std::string RemedyFor(std::string_view reason, const api::ObjectMeta& meta) {
  for (const Remedy& remedy : kRemedies) {
    if (remedy.reason != reason) continue;
    std::string text(remedy.text);
    for (const auto& [word, value] : {std::pair{"NAME", meta.name}, std::pair{"NS", meta.ns}}) {
      if (const auto at = text.find(word); at != std::string::npos) {
        text.replace(at, std::string_view(word).size(), value);
      }
    }
    return text;
  }
  return "";
}

// Whether instances tell of it by themselves: the condition says what the first of them does.
bool IsToldByInstances(const Concern& concern, const std::vector<plan::Instance>& instances) {
  return std::any_of(instances.begin(), instances.end(), [&](const plan::Instance& instance) {
    return (concern.reason == "TransportFallback" && !instance.transport_fallback.empty()) ||
           (concern.reason == "CachesNotUsed" && !instance.state_miss.empty());
  });
}

void CheckInstance(const plan::Instance& instance, const api::ObjectMeta& meta, TimePoint now,
                   std::vector<Finding>& out) {
  const std::string subject = instance.ns + "/" + instance.name;
  const std::string logs = "kubectl -n " + instance.ns + " logs " + instance.name;
  const auto add = [&](Level level, std::string text, std::string remedy) {
    out.push_back({level, subject, std::move(text), std::move(remedy)});
  };
  if (instance.deleting) return;
  if (!instance.agent_state && instance.started_at && now - *instance.started_at > kFirstReport) {
    add(Level::kError,
        "its agent has not reported since the node took it, " + Age(now - *instance.started_at) +
            " ago",
        logs + " -c agent; it must reach the operator's Service, port 7482");
  }
  if (instance.agent_state == AgentState::kFailed) {
    add(Level::kError, "failed: " + instance.agent_message,
        logs + " -c agent; " + logs + " -c engine");
  }
  if (!instance.crash_looping.empty()) {
    const std::string container =
        instance.crash_looping.substr(0, instance.crash_looping.find(':'));
    add(Level::kError, "crash-loops: " + instance.crash_looping,
        logs + " --previous -c " + container);
  }
  if (!instance.transport_fallback.empty()) {
    add(Level::kWarning, "weights came by TCP past RDMA: " + instance.transport_fallback,
        RemedyFor("TransportFallback", meta));
  }
  if (!instance.state_miss.empty()) {
    add(Level::kWarning, "compile caches were installed and not used: " + instance.state_miss,
        RemedyFor("CachesNotUsed", meta));
  }
  if (instance.failed_wakes.count > 0) {
    add(Level::kWarning, "could not be woken: " + instance.failed_wakes.reason, logs + " -c agent");
  }
}

void CheckStorage(const ServiceView& view, const Result<std::vector<Json>>& claims,
                  std::vector<Finding>& out) {
  const api::Storage& storage = view.service.spec.model.storage;
  if (!view.unreadable.ok() || storage.kind != api::Storage::Kind::kPersistentVolumeClaim) return;
  const std::string ns = view.service.metadata.ns;
  if (!claims.ok()) {
    out.push_back({Level::kUnchecked, view.Name(), "storage: " + claims.status().message(), ""});
    return;
  }
  for (const Json& claim : *claims) {
    if (Text(At(claim, "metadata"), "name") != storage.claim_name) continue;
    const std::string phase = Text(At(claim, "status"), "phase");
    if (phase == "Bound") {
      out.push_back({Level::kOk, view.Name(), "claim " + storage.claim_name + " is bound", ""});
    } else {
      out.push_back({Level::kError, view.Name(),
                     "claim " + storage.claim_name + " is " + phase + ", not bound to a volume",
                     "kubectl -n " + ns + " describe persistentvolumeclaim/" + storage.claim_name});
    }
    return;
  }
  out.push_back({Level::kError, view.Name(),
                 "claim " + storage.claim_name + " of spec.model.storage is not there",
                 "make it in namespace " + ns + ", or name another"});
}

// What the kubelet says of volumes: the last word about each pod.
void CheckMounts(const ServiceView& view, const Result<std::vector<Json>>& warnings, TimePoint now,
                 std::vector<Finding>& out) {
  if (!warnings.ok()) {
    out.push_back({Level::kUnchecked, view.Name(), "mounts: " + warnings.status().message(), ""});
    return;
  }
  std::map<std::string, EventView> last;
  for (const EventView& event : EventsOf(view, *warnings)) {
    const bool of_mounts = event.reason == "FailedMount" || event.reason == "FailedAttachVolume";
    if (of_mounts && now - event.last < kRecent) last[event.uid] = event;
  }
  for (const plan::Instance& instance : view.instances) {
    const auto found = last.find(instance.uid);
    // Whoever has started since has its volumes.
    if (found == last.end() || instance.agent_state) continue;
    out.push_back({Level::kError, instance.ns + "/" + instance.name,
                   found->second.reason + ": " + found->second.note,
                   "make what it names available on node " + instance.node});
  }
}

void TellTransports(const ServiceView& view, std::vector<Finding>& out) {
  std::map<std::string, int> by_transport;
  for (const plan::Instance& instance : view.instances) {
    const std::string transport = Reported(instance, api::kAnnotationTransport);
    if (!transport.empty()) ++by_transport[transport];
  }
  std::string text;
  for (const auto& [transport, count] : by_transport) {
    text += (text.empty() ? "" : ", ") + transport + " (" + std::to_string(count) + ")";
  }
  if (!text.empty()) out.push_back({Level::kOk, view.Name(), "weights came by " + text, ""});
}

}  // namespace

void CheckService(const ServiceView& view, const NamespaceEvidence& evidence, TimePoint now,
                  std::vector<Finding>& out) {
  const api::ObjectMeta& meta = view.service.metadata;
  const std::size_t before = out.size();
  for (const Concern& concern : ConcernsOf(view)) {
    if (IsToldByInstances(concern, view.instances)) continue;
    if (!concern.failure && concern.reason != "Behind") continue;  // It is on its way.
    // Without caches an instance starts later, and serves all the same.
    const bool error = concern.failure && concern.type != api::kConditionStateReuse;
    out.push_back({error ? Level::kError : Level::kWarning, view.Name(),
                   concern.type + " " + concern.reason + ": " + concern.message,
                   RemedyFor(concern.reason, meta)});
  }
  for (const plan::Instance& instance : view.instances) CheckInstance(instance, meta, now, out);
  CheckMounts(view, evidence.pod_warnings, now, out);
  const bool nothing = std::none_of(
      out.begin() + static_cast<std::ptrdiff_t>(before), out.end(), [](const Finding& finding) {
        return finding.level == Level::kError || finding.level == Level::kWarning;
      });
  if (nothing) {
    out.push_back(
        {Level::kOk, view.Name(),
         ServeText(view.service.status.ready, view.service.spec.replicas) + ", nothing is amiss",
         ""});
  }
  CheckStorage(view, evidence.claims, out);
  TellTransports(view, out);
}

}  // namespace rouse::kubectl
