// What a run of the planner decides about guards, about who may be sent requests, and by what way.

#include <set>

#include "operator/plan/guards.h"
#include "operator/plan/pass.h"
#include "operator/plan/source.h"

namespace rouse::plan {
namespace {

constexpr std::size_t kMaxNear = 8;  // Terms in a pod's node affinity.

bool InEndpoints(const Instance& instance) {
  return instance.gated && instance.ready;
}

}  // namespace

Pointers Pass::Sources() const {
  Pointers all = summary.working;
  all.insert(all.end(), summary.guards.begin(), summary.guards.end());
  return all;
}

void Pass::Create(const PathChoice& choice, Role role, bool begins_without) {
  std::set<std::string> near;
  for (const Instance* source : Sources()) {
    if (source->launch_identity == launch_identity && IsServable(*source) &&
        !source->node.empty()) {
      near.insert(source->node);
    }
  }
  while (near.size() > kMaxNear) near.erase(std::prev(near.end()));
  for (std::string& name : FreeNames(choice.start_now)) {
    actions.push_back(CreateInstance{.pod = std::move(name),
                                     .role = role,
                                     .path = choice.path,
                                     .path_reason = choice.reason,
                                     .begins_without = begins_without,
                                     .launch_identity = launch_identity,
                                     .revision = revision,
                                     .decided_at = now,
                                     .near = {near.begin(), near.end()}});
  }
}

void Pass::Retire(const Instance& instance, Cause cause, std::string reason) {
  if (!InEndpoints(instance)) return Delete(instance, cause, std::move(reason));
  actions.push_back(Leave{.pod = instance.name,
                          .uid = instance.uid,
                          .leaving = {.at = now, .cause = cause, .reason = std::move(reason)}});
  actions.push_back(SetServing{.pod = instance.name, .uid = instance.uid, .may_serve = false});
  std::erase(summary.working, &instance);
  std::erase(summary.guards, &instance);
  ++summary.stopping;
  LookAgainAt(now + observed.policy.leave_deadline);
}

void Pass::FinishLeaving() {
  for (const Instance* instance : summary.leaving) {
    const TimePoint latest = instance->leaving->at + observed.policy.leave_deadline;
    const bool waited = IsOver(instance->leaving->at, observed.policy.leave_deadline, now);
    if (InEndpoints(*instance) && !waited) {
      LookAgainAt(latest);
      continue;
    }
    Delete(*instance, instance->leaving->cause, instance->leaving->reason);
  }
}

// A claim has a lease: whoever was told to wake, or could not be told, and sleeps on.
void Pass::ReleaseSleepers() {
  Pointers asleep;
  for (const Instance* instance : summary.working) {
    if (!IsWaking(*instance)) continue;
    if (!IsOver(instance->decided_at, observed.policy.wake_deadline, now)) {
      LookAgainAt(instance->decided_at + observed.policy.wake_deadline);
    } else if (instance->agent_state == AgentState::kAsleep) {
      asleep.push_back(instance);
    }
  }
  for (const Instance* instance : asleep) {
    const auto seconds =
        std::chrono::duration_cast<std::chrono::seconds>(observed.policy.wake_deadline);
    actions.push_back(ReleaseGuard{
        .pod = instance->name,
        .uid = instance->uid,
        .resource_version = instance->resource_version,
        .failed_wakes = {.count = instance->failed_wakes.count + 1,
                         .at = now,
                         .reason = "it slept on for " + std::to_string(seconds.count()) + " s"}});
    std::erase(summary.working, instance);
    summary.released.push_back(instance);
  }
}

int Pass::UsableGuards() const {
  return static_cast<int>(std::count_if(
      summary.guards.begin(), summary.guards.end(),
      [&](const Instance* guard) { return IsUsableGuard(*guard) && guard->revision == revision; }));
}

bool Pass::BecomesGuard(const Instance& instance) const {
  if (instance.revision != revision || !instance.gated || !instance.ready ||
      instance.agent_state != AgentState::kServing) {
    return false;
  }
  return UsableGuards() + summary.demoted < spec.guard_replicas;
}

Pointers Pass::Claimable() const {
  Pointers current;
  for (const Instance* guard : summary.guards) {
    if (guard->revision == revision && guard->failed_wakes.count < kMaxFailedWakes) {
      current.push_back(guard);
    }
  }
  return current;
}

std::vector<Sleeper> Pass::Sleepers() const {
  Pointers asleep = Claimable();
  std::erase_if(asleep, [](const Instance* x) { return x->agent_state != AgentState::kAsleep; });
  const int all = static_cast<int>(asleep.size());
  std::vector<Sleeper> ordered;
  for (const auto& claim : ChooseGuards(asleep, Sources(), all, observed.policy, now).claims) {
    const Instance& guard = *claim.guard;
    ordered.push_back({.pod = guard.name, .uid = guard.uid, .address = guard.address});
  }
  return ordered;
}

int Pass::ClaimGuards(int missing) {
  GuardChoice choice = ChooseGuards(Claimable(), Sources(), missing, observed.policy, now);
  for (GuardClaim& claim : choice.claims) {
    actions.push_back(ClaimGuard{.pod = claim.guard->name,
                                 .uid = claim.guard->uid,
                                 .resource_version = claim.guard->resource_version,
                                 .address = claim.guard->address,
                                 .wake = claim.wake,
                                 .peers = std::move(claim.peers),
                                 .reason = std::move(claim.reason),
                                 .decided_at = now,
                                 .failed_wakes = claim.guard->failed_wakes});
    std::erase(summary.guards, claim.guard);
    summary.claimed.push_back(claim.guard);
  }
  for (const Instance* guard : choice.waiting_for) summary.awaited_guards.push_back(guard);
  summary.no_wake = choice.why_not;
  return static_cast<int>(choice.claims.size() + choice.waiting_for.size());
}

// Its agent was told before it was claimed, and may have been started anew since. One that knows
// does nothing more.
void Pass::WakeAgain() {
  for (const Instance* instance : summary.working) {
    if (!IsWaking(*instance) || instance->agent_state != AgentState::kAsleep) continue;
    const bool due = IsOver(instance->decided_at, observed.policy.wake_again, now);
    LookAgainAt((due ? now : instance->decided_at) + observed.policy.wake_again);
    if (!due || instance->agent_down || instance->address.empty()) continue;
    std::vector<Peer> peers = PeersFor(*instance, Sources());
    if (peers.empty() || peers.front().partial) continue;
    actions.push_back(ClaimGuard{.pod = instance->name,
                                 .uid = instance->uid,
                                 .resource_version = instance->resource_version,
                                 .address = instance->address,
                                 .wake = true,
                                 .again = true,
                                 .peers = std::move(peers),
                                 .reason = instance->path_reason,
                                 .decided_at = instance->decided_at,
                                 .failed_wakes = instance->failed_wakes});
  }
}

void Pass::TendGuards() {
  const Pointers all = summary.guards;
  Pointers kept;
  for (const Instance* guard : all) {
    if (guard->failed_wakes.count >= kMaxFailedWakes) {
      Retire(*guard, Cause::kRetired,
             "it could not be woken " + std::to_string(guard->failed_wakes.count) +
                 " times, the last time: " + guard->failed_wakes.reason);
    } else if (guard->revision != revision) {
      Retire(*guard, Cause::kOutdated, "the spec has changed");
    } else {
      kept.push_back(guard);
    }
  }
  const int surplus = static_cast<int>(kept.size()) + summary.demoted - spec.guard_replicas;
  for (const Instance* guard : ChooseSurplusGuards(kept, surplus)) {
    Retire(*guard, Cause::kScaleIn, "there are more guards than wanted");
  }
  for (const Instance* guard : summary.guards) {
    if (guard->agent_state != AgentState::kServing || guard->agent_down || InEndpoints(*guard)) {
      continue;
    }
    if (IsNeededSource(*guard, Sources())) continue;
    if (summary.outdated > 0) continue;  // It has the weights that the next ones need.
    actions.push_back(PutToSleep{.pod = guard->name, .uid = guard->uid, .address = guard->address});
  }
}

void Pass::TopUpGuards() {
  if (!summary.claimed.empty()) return;  // If they do not wake, there are more to be started.
  const auto replicas = static_cast<int>(summary.working.size());
  // Replicas first, and none that fails, or finds no node, for want of what a guard would take.
  if (replicas < spec.replicas || summary.retry_at || !summary.uncounted.empty()) return;
  const auto has_no_node = [](const Instance* instance) { return instance->node.empty(); };
  if (std::any_of(summary.working.begin(), summary.working.end(), has_no_node)) return;
  const auto there =
      static_cast<int>(summary.guards.size() + summary.released.size()) + summary.demoted;
  const int missing = spec.guard_replicas - there;
  if (missing <= 0) return;
  const Failures& failures = summary.guard_failures;
  if (const TimePoint retry_at = RetryAt(failures, observed.policy); now < retry_at) {
    LookAgainAt(retry_at);
    return;
  }
  PathChoice choice = ChoosePath(spec, launch_identity, Sources(), missing, "a guard is to be made",
                                 observed.policy, now);
  // It would read a whole checkpoint only to give it up: while nobody serves, nobody takes weights
  // from it either. Replicas, when they come, read their own, and wake it.
  const bool without = choice.path == StartPath::kStorage && spec.replicas == 0 && replicas == 0 &&
                       spec.fast_start.weights_source == api::WeightSource::kPeer;
  if (without) {
    choice.reason += "; Storage: nobody serves, so it begins without weights";
    choice.start_now = missing;
    choice.waiting = 0;
  }
  if (choice.waiting > 0)
    LookAgainAt(choice.waiting_until.value_or(now + observed.policy.peer_wait));
  Create(choice, Role::kGuard, without);
  summary.creating_guards = choice.start_now;
}

// Whoever is a replica may be sent requests; whether it answers them yet is the agent's probe's to
// say, so that nothing is left to be done when it does.
void Pass::SetGates() {
  const auto set = [&](const Instance* instance, bool may_serve) {
    if (!instance->gated || instance->may_serve == may_serve) return;
    actions.push_back(
        SetServing{.pod = instance->name, .uid = instance->uid, .may_serve = may_serve});
  };
  for (const Instance* instance : summary.working) set(instance, true);
  for (const Instance* guard : summary.guards) set(guard, false);
  for (const Instance* instance : summary.leaving) {
    if (InEndpoints(*instance)) set(instance, false);
  }
}

// Last: requests need replicas first.
void Pass::TendEndpoint() {
  const std::optional<Endpoint>& endpoint = observed.endpoint;
  if (observed.endpoint_taken) return;
  if (endpoint && endpoint->owner_uid != observed.service.metadata.uid) return;
  if (endpoint && IsAsRendered(*endpoint, observed.service)) return;
  actions.push_back(EnsureEndpoint{.exists = endpoint.has_value()});
}

}  // namespace rouse::plan
