#include "operator/actuate/reconciler.h"

#include <algorithm>

#include "common/log.h"
#include "operator/api/names.h"
#include "operator/plan/guards.h"

namespace rouse::actuate {
namespace {

/// Plans of one pass, each after something turned out to be other than the caches show.
constexpr int kMaxReplans = 3;
/// Should the watch not bring what the cache lacked.
constexpr std::chrono::milliseconds kBehind{1'000};

// A status that is already as wanted is not written: the write would come back as a change, for
// ever.
bool Same(const api::ServiceStatus& a, const api::ServiceStatus& b) {
  return api::ToJson(a) == api::ToJson(b);
}

}  // namespace

std::optional<plan::Observed> Observe(const std::string& key, const Cache& cache, Pending& pending,
                                      const plan::Policy& policy) {
  const auto stored = cache.Service(key);
  if (!stored) return std::nullopt;
  plan::Observed observed;
  observed.service = stored->service;
  observed.policy = policy;
  for (const auto& pod : cache.PodsOf(key)) {
    if (pod->owner_uid == observed.service.metadata.uid) {
      observed.instances.push_back(*pod);
    } else {
      observed.taken_names.push_back(pod->name);
    }
  }
  if (const auto endpoint = cache.Endpoint(key)) observed.endpoint = *endpoint;
  pending.AddTo(key, observed);
  return observed;
}

Reconciler::Reconciler(kube::Api& api, Agents& agents, const Cache& cache, Pending& pending,
                       Metrics& metrics, Tell tell, std::function<bool()> may_act,
                       ReconcilerOptions options)
    : api_(api),
      agents_(agents),
      cache_(cache),
      pending_(pending),
      metrics_(metrics),
      tell_(std::move(tell)),
      may_act_(std::move(may_act)),
      options_(std::move(options)),
      executor_(api, agents, cache, pending, may_act_, options_.confirm, options_.prepare) {}

Result<std::optional<std::chrono::milliseconds>> Reconciler::Reconcile(const std::string& key) {
  const auto stored = cache_.Service(key);
  const auto observed = Observe(key, cache_, pending_, options_.policy);
  if (!stored || !observed) {
    // Its pods go by their owner references; only our own traces are left to be wiped.
    const auto name = kube::ObjectName::FromKey(key);
    metrics_.ForgetInstances(name.ns, name.name);
    pending_.Forget(key);
    agents_.KeepConnected(key, {});
    return std::optional<std::chrono::milliseconds>();
  }
  const api::ModelService& service = observed->service;
  const api::TimePoint now = options_.clock();
  if (!stored->error.ok()) {
    log::Warning("spec cannot be read",
                 {{"modelservice", key}, {"error", stored->error.ToString()}});
    const api::ServiceStatus status = plan::InvalidSpecStatus(
        service.status, service.metadata.generation, stored->error.message(), now);
    ROUSE_RETURN_IF_ERROR(Publish(service, status));
    return std::optional(options_.resync);
  }

  plan::Plan plan = plan::MakePlan(*observed, now);
  Outcome outcome = Perform(service, plan);
  // What stood in the way is known by now (pending.h): the next path is tried at once, before a
  // status is written that says something else.
  for (int more = 0; outcome.replan && outcome.errors.empty() && more < kMaxReplans; ++more) {
    const auto anew = Observe(key, cache_, pending_, options_.policy);
    if (!anew) break;
    plan = plan::MakePlan(*anew, options_.clock());
    Outcome next = Perform(anew->service, plan);
    next.notes.insert(next.notes.begin(), outcome.notes.begin(), outcome.notes.end());
    outcome = std::move(next);
  }
  for (const plan::Note& note : outcome.notes) tell_(service.metadata, note);
  for (const std::string& error : outcome.errors) {
    tell_(service.metadata, {true, "ActionFailed", "Act", error});
  }
  plan::AddActionErrors(plan.status, outcome.errors, now);

  KeepConnected(key, service.metadata.ns, plan.sleepers);
  // Before publishing, so that a scrape shows what runs even while the API server refuses writes.
  Count(service, plan);
  const Status published = Publish(service, plan.status);
  // The cache is behind, as a rule by our own last write: what it lacks is on its way, and brings
  // this key back.
  if (published.code() == StatusCode::kConflict && outcome.errors.empty()) {
    return std::optional(kBehind);
  }
  ROUSE_RETURN_IF_ERROR(published);
  // Told and counted only now: what is in the status is not told again after a restart.
  for (const plan::Note& note : plan.notes) tell_(service.metadata, note);
  for (const api::ScaleOut& scale_out : plan.new_scale_outs) metrics_.ScaleOutFinished(scale_out);
  for (const plan::FailedStart& start : plan.failed_starts) {
    metrics_.ScaleOutFailed(std::string(ToString(start.path)), start.seconds);
  }
  if (!outcome.errors.empty()) return Unavailable(outcome.errors.front());
  if (outcome.replan) return std::optional(std::chrono::milliseconds(0));
  return std::optional(std::min({options_.resync, plan.replan_after.value_or(options_.resync),
                                 outcome.again.value_or(options_.resync)}));
}

Outcome Reconciler::Perform(const api::ModelService& service, const plan::Plan& plan) {
  Outcome outcome = executor_.Perform(service, plan.actions, options_.pods);
  for (const plan::Action& action : plan.actions) metrics_.Acted(plan::KindOf(action));
  for (const double seconds : outcome.failed_wakes) {
    metrics_.ScaleOutFailed(std::string(ToString(StartPath::kWake)), seconds);
  }
  return outcome;
}

Status Reconciler::Publish(const api::ModelService& service, const api::ServiceStatus& status) {
  if (Same(service.status, status)) return Status();
  if (!may_act_()) return Unavailable("this operator does not lead any more");
  // Conditional: a status computed from an old object must not overwrite a newer one.
  const Json patch = {{"metadata", {{"resourceVersion", service.metadata.resource_version}}},
                      {"status", api::ToJson(status)}};
  const kube::ObjectName name{service.metadata.ns, service.metadata.name};
  auto written = api_.MergePatch(kube::ModelServices(), name, patch,
                                 {.field_manager = api::kFieldManager, .subresource = "status"});
  if (written.ok() || written.status().code() == StatusCode::kNotFound) return Status();
  return written.status();
}

// Whoever is woken next is told over a connection that is there already.
void Reconciler::KeepConnected(const std::string& key, const std::string& ns,
                               const std::vector<plan::Sleeper>& sleepers) {
  std::vector<AgentName> agents;
  for (const plan::Sleeper& guard : sleepers) {
    agents.push_back(AgentOf(ns, guard));
  }
  agents_.KeepConnected(key, std::move(agents));
}

void Reconciler::Count(const api::ModelService& service, const plan::Plan& plan) {
  const api::ServiceStatus& s = plan.status;
  metrics_.Instances(service.metadata.ns, service.metadata.name,
                     {{"ready", s.ready},
                      {"starting", s.active - s.ready},
                      {"failed", s.failed},
                      {"guard", s.guards},
                      {"waking", s.waking}});
  metrics_.Desired(service.metadata.ns, service.metadata.name, service.spec.replicas,
                   service.spec.guard_replicas);
}

}  // namespace rouse::actuate
