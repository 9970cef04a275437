#include "operator/plan/planner.h"

#include <algorithm>
#include <set>
#include <tuple>

#include "operator/plan/choose_path.h"
#include "operator/plan/guards.h"
#include "operator/plan/pass.h"
#include "operator/plan/source.h"

namespace rouse::plan {

// Splits the instances by what they are to us, in name order, so that nothing below depends on the
// order in which they were given.
void Pass::Sort() {
  Pointers all;
  for (const Instance& instance : observed.instances) all.push_back(&instance);
  std::sort(all.begin(), all.end(), [](const Instance* a, const Instance* b) {
    return std::tie(a->name, a->uid) < std::tie(b->name, b->uid);
  });
  for (const Instance* instance : all) {
    if (instance->deleting) {
      summary.going.push_back(instance);
      continue;
    }
    if (std::string why = FailureOf(*instance, observed.policy, now); !why.empty()) {
      summary.failed.push_back({instance, std::move(why)});
      continue;
    }
    if (instance->leaving) {
      summary.leaving.push_back(instance);
      continue;
    }
    // It may serve those who reach it, and come back: it is replaced and not deleted. If it does
    // come back, there is one too many, of which the one to go is chosen as ever.
    if (instance->node_lost) {
      summary.lost.push_back(instance);
      continue;
    }
    (instance->role == Role::kGuard ? summary.guards : summary.working).push_back(instance);
    if (instance->started_at && !instance->timeline && !instance->ready) {
      LookAgainAt(*instance->started_at + observed.policy.start_deadline);
    }
  }
  summary.active = static_cast<int>(summary.working.size());
  summary.waking = static_cast<int>(std::count_if(summary.working.begin(), summary.working.end(),
                                                  [](const Instance* i) { return IsWaking(*i); }));
  summary.ready = static_cast<int>(std::count_if(summary.working.begin(), summary.working.end(),
                                                 [](const Instance* i) { return i->ready; }));
}

// Failures in a row are remembered in the status. An instance that was decided before the last
// counted failure belongs to the same wave and raises nothing: when one source dies, all that
// pulled from it fail together, and that is one failure.
void Pass::CountFailures() {
  const api::ServiceStatus& before = observed.service.status;
  const bool edited = before.observed_generation != observed.service.metadata.generation;
  const bool failed_ahead =
      std::any_of(summary.failed.begin(), summary.failed.end(),
                  [&](const Failed& failed) { return failed.instance->decided_at > now; });
  const auto count = [&](Role role, Failures& failures, const Failures& known,
                         const auto& has_recovered) {
    failures = known;
    // Of a clock that was ahead: until then nothing that fails or comes up would count. (Whoever
    // was decided by that clock and has failed is counted by it, and is to go first.)
    if (failures.last && *failures.last > now + observed.policy.backoff_max && !failed_ahead) {
      failures.last = now;
    }
    if (edited || (failures.last && has_recovered(*failures.last))) failures.in_a_row = 0;
    const std::optional<TimePoint> last = failures.last;
    bool any = false;
    for (const Failed& failed : summary.failed) {
      const TimePoint decided_at = failed.instance->decided_at;
      if (failed.instance->role != role || (last && decided_at <= *last)) continue;
      any = true;
      summary.uncounted.insert(failed.instance);
      // A leader whose clock is behind must not count the same failure for ever.
      failures.last = std::max({failures.last.value_or(now), now, decided_at});
    }
    if (any) ++failures.in_a_row;
  };
  const auto any_later = [](const Pointers& instances, TimePoint last, const auto& is_up) {
    return std::any_of(instances.begin(), instances.end(),
                       [&](const Instance* i) { return is_up(*i) && i->decided_at > last; });
  };
  count(Role::kActive, summary.failures, {before.consecutive_failures, before.last_failure},
        [&](TimePoint last) {
          return any_later(summary.working, last, [](const Instance& i) { return i.ready; });
        });
  count(Role::kGuard, summary.guard_failures,
        {before.consecutive_guard_failures, before.last_guard_failure}, [&](TimePoint last) {
          return any_later(summary.guards, last,
                           [](const Instance& i) { return i.agent_state == AgentState::kAsleep; });
        });
}

void Pass::Delete(const Instance& instance, Cause cause, std::string reason) {
  actions.push_back(DeleteInstance{
      .pod = instance.name, .uid = instance.uid, .cause = cause, .reason = std::move(reason)});
  std::erase(summary.working, &instance);
  std::erase(summary.guards, &instance);
  summary.stopping += cause != Cause::kFailed;
}

void Pass::DeleteFailed() {
  for (const Failed& failed : summary.failed) {
    if (summary.uncounted.contains(failed.instance)) continue;
    Delete(*failed.instance, Cause::kFailed, failed.why);
  }
}

// How many replicas there shall be now: more than wanted while older ones are replaced.
int Pass::Target() const {
  const auto outdated = std::count_if(summary.working.begin(), summary.working.end(),
                                      [&](const Instance* i) { return i->revision != revision; });
  return spec.replicas + std::min(spec.max_surge, static_cast<int>(outdated));
}

void Pass::ScaleIn() {
  const int surplus = static_cast<int>(summary.working.size()) - Target();
  if (surplus <= 0) return;
  for (const Victim& victim : ChooseVictims(summary.working, surplus, revision, summary.guards)) {
    if (!BecomesGuard(*victim.instance)) {
      Retire(*victim.instance, Cause::kScaleIn, victim.reason);
      continue;
    }
    const Instance& instance = *victim.instance;
    actions.push_back(
        MakeGuard{.pod = instance.name, .uid = instance.uid, .reason = victim.reason});
    actions.push_back(SetServing{.pod = instance.name, .uid = instance.uid, .may_serve = false});
    std::erase(summary.working, &instance);
    ++summary.demoted;
  }
}

void Pass::ReplaceOutdated() {
  Pointers outdated;
  for (const Instance* instance : summary.working) {
    if (instance->revision != revision) outdated.push_back(instance);
  }
  summary.outdated = static_cast<int>(outdated.size());
  Pointers serving;
  for (const Instance* instance : outdated) {
    if (instance->ready) {
      serving.push_back(instance);
    } else {
      Delete(*instance, Cause::kOutdated, "the spec has changed, it does not serve yet");
    }
  }
  if (serving.empty() || !summary.failed.empty()) return;
  // A guard takes the place at once; one that never comes up must not cost a replica that serves.
  if (spec.guard_replicas > 0 && UsableGuards() == 0) return;
  const auto ready = static_cast<int>(std::count_if(summary.working.begin(), summary.working.end(),
                                                    [](const Instance* i) { return i->ready; }));
  const int spare = ready - (spec.replicas - spec.max_unavailable);
  const int all = static_cast<int>(serving.size());
  for (const Victim& victim : ChooseVictims(serving, std::clamp(spare, 0, all), revision)) {
    Retire(*victim.instance, Cause::kOutdated, "the spec has changed");
  }
}

std::vector<std::string> Pass::FreeNames(int count) const {
  std::set<std::string> taken(observed.taken_names.begin(), observed.taken_names.end());
  for (const Instance& instance : observed.instances) taken.insert(instance.name);
  for (const Action& action : actions) {
    if (const auto* create = std::get_if<CreateInstance>(&action)) taken.insert(create->pod);
  }
  std::vector<std::string> names;
  for (int ordinal = 0; static_cast<int>(names.size()) < count; ++ordinal) {
    std::string name = observed.service.metadata.name + "-" + std::to_string(ordinal);
    if (!taken.contains(name)) names.push_back(std::move(name));
  }
  return names;
}

void Pass::ScaleOut() {
  const auto uncounted = std::count_if(summary.uncounted.begin(), summary.uncounted.end(),
                                       [](const Instance* i) { return i->role == Role::kActive; });
  const int there = static_cast<int>(summary.working.size()) + static_cast<int>(uncounted);
  int missing = Target() - there;
  if (missing <= 0) return;
  missing -= ClaimGuards(missing);
  if (missing <= 0) return;
  if (const TimePoint retry_at = RetryAt(summary.failures, observed.policy); now < retry_at) {
    summary.retry_at = retry_at;
    LookAgainAt(retry_at);
    return;
  }
  summary.choice =
      ChoosePath(spec, launch_identity, Sources(), missing, summary.no_wake, observed.policy, now);
  if (summary.choice->waiting > 0) {
    LookAgainAt(summary.choice->waiting_until.value_or(now + observed.policy.peer_wait));
  }
  Create(*summary.choice, Role::kActive);
  summary.creating = summary.choice->start_now;
}

Plan Pass::Run() {
  Plan plan;
  Sort();
  CountFailures();
  if (!observed.service.metadata.deleting) {
    DeleteFailed();
    FinishLeaving();
    ReleaseSleepers();
    ScaleIn();
    ReplaceOutdated();
    ScaleOut();
    WakeAgain();
    TendGuards();
    TopUpGuards();
    SetGates();
    TendEndpoint();
    plan.sleepers = Sleepers();
  }
  plan.status = MakeStatus(observed, summary, now);
  plan.new_scale_outs = NewScaleOuts(observed.service.status, plan.status);
  plan.notes = MakeNotes(observed, summary, plan.status, plan.new_scale_outs);
  for (const Instance* instance : summary.uncounted) {
    if (instance->timeline && instance->path != StartPath::kWake) continue;
    const double seconds = std::chrono::duration<double>(now - instance->decided_at).count();
    plan.failed_starts.push_back({instance->name, instance->path, seconds});
  }
  std::sort(plan.failed_starts.begin(), plan.failed_starts.end(),
            [](const FailedStart& a, const FailedStart& b) { return a.pod < b.pod; });
  plan.actions = std::move(actions);
  if (replan_at && !observed.service.metadata.deleting) {
    const auto wait = std::chrono::ceil<std::chrono::milliseconds>(*replan_at - now);
    plan.replan_after = std::max(wait, std::chrono::milliseconds(1));
  }
  return plan;
}

Plan MakePlan(const Observed& observed, TimePoint now) {
  return Pass{
      .observed = observed, .now = now, .summary = {}, .actions = {}, .replan_at = std::nullopt}
      .Run();
}

}  // namespace rouse::plan
