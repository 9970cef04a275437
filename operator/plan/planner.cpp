#include "operator/plan/planner.h"

#include <algorithm>
#include <set>

#include "operator/api/launch_identity.h"
#include "operator/plan/choose_path.h"
#include "operator/plan/scale_in.h"
#include "operator/plan/source.h"
#include "operator/plan/summary.h"

namespace rouse::plan {
namespace {

using Pointers = std::vector<const Instance*>;

struct Planner {
  const Observed& observed;
  const TimePoint now;
  const api::Spec& spec = observed.service.spec;
  const std::string launch_identity = api::LaunchIdentity(spec);
  const std::string revision = api::Revision(spec);

  Summary summary;
  std::vector<Action> actions;
  std::optional<TimePoint> replan_at;

  void LookAgainAt(TimePoint time) { replan_at = std::min(replan_at.value_or(time), time); }

  void Sort();
  void CountFailures();
  void DeleteFailed();
  void ScaleIn();
  void ReplaceOutdated();
  void ScaleOut();
  void Delete(const Instance& instance, DeleteInstance::Cause cause, std::string reason);
  std::vector<std::string> FreeNames(int count) const;
  Plan Run();
};

// Splits the instances by what they are to us, in name order, so that nothing below depends on the
// order in which they were given.
void Planner::Sort() {
  Pointers all;
  for (const Instance& instance : observed.instances) all.push_back(&instance);
  std::sort(all.begin(), all.end(), [](const Instance* a, const Instance* b) {
    return std::tie(a->name, a->uid) < std::tie(b->name, b->uid);
  });
  for (const Instance* instance : all) {
    if (instance->role != Role::kActive) continue;
    if (instance->deleting) {
      summary.going.push_back(instance);
      continue;
    }
    if (std::string why = FailureOf(*instance, observed.policy, now); !why.empty()) {
      summary.failed.push_back({instance, std::move(why)});
      continue;
    }
    summary.working.push_back(instance);
    if (instance->started_at && !instance->timeline && !instance->ready) {
      LookAgainAt(*instance->started_at + observed.policy.start_deadline);
    }
  }
  summary.active = static_cast<int>(summary.working.size());
  summary.ready = static_cast<int>(std::count_if(summary.working.begin(), summary.working.end(),
                                                 [](const Instance* i) { return i->ready; }));
}

// Failures in a row are remembered in the status. An instance that was decided before the last
// counted failure belongs to the same wave and raises nothing: when one source dies, all that
// pulled from it fail together, and that is one failure.
void Planner::CountFailures() {
  const api::ServiceStatus& before = observed.service.status;
  summary.consecutive_failures = before.consecutive_failures;
  summary.last_failure = before.last_failure;
  const bool edited = before.observed_generation != observed.service.metadata.generation;
  const bool recovered =
      std::any_of(summary.working.begin(), summary.working.end(), [&](const Instance* i) {
        return i->ready && before.last_failure && i->decided_at > *before.last_failure;
      });
  if (edited || recovered) summary.consecutive_failures = 0;

  for (const Failed& failed : summary.failed) {
    const TimePoint decided_at = failed.instance->decided_at;
    if (before.last_failure && decided_at <= *before.last_failure) continue;
    summary.uncounted.insert(failed.instance);
    // A leader whose clock is behind must not count the same failure for ever.
    summary.last_failure = std::max({summary.last_failure.value_or(now), now, decided_at});
  }
  if (!summary.uncounted.empty()) ++summary.consecutive_failures;
}

void Planner::Delete(const Instance& instance, DeleteInstance::Cause cause, std::string reason) {
  actions.push_back(DeleteInstance{
      .pod = instance.name, .uid = instance.uid, .cause = cause, .reason = std::move(reason)});
  std::erase(summary.working, &instance);
  summary.stopping += cause != DeleteInstance::Cause::kFailed;
}

void Planner::DeleteFailed() {
  for (const Failed& failed : summary.failed) {
    if (summary.uncounted.contains(failed.instance)) continue;
    Delete(*failed.instance, DeleteInstance::Cause::kFailed, failed.why);
  }
}

void Planner::ScaleIn() {
  const int surplus = static_cast<int>(summary.working.size()) - spec.replicas;
  if (surplus <= 0) return;
  for (const Victim& victim : ChooseVictims(summary.working, surplus, revision)) {
    Delete(*victim.instance, DeleteInstance::Cause::kScaleIn, victim.reason);
  }
}

void Planner::ReplaceOutdated() {
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
      Delete(*instance, DeleteInstance::Cause::kOutdated,
             "the spec has changed, it does not serve yet");
    }
  }
  const auto ready = std::count_if(summary.working.begin(), summary.working.end(),
                                   [](const Instance* i) { return i->ready; });
  // Surplus instances that scale-in spared count too: wait until the numbers are as wanted.
  if (serving.empty() || ready != spec.replicas || !actions.empty()) return;
  if (static_cast<int>(summary.working.size()) != spec.replicas || !summary.failed.empty()) return;
  for (const Victim& victim : ChooseVictims(serving, kMaxUnavailable, revision)) {
    Delete(*victim.instance, DeleteInstance::Cause::kOutdated, "the spec has changed");
  }
}

std::vector<std::string> Planner::FreeNames(int count) const {
  std::set<std::string> taken(observed.taken_names.begin(), observed.taken_names.end());
  for (const Instance& instance : observed.instances) taken.insert(instance.name);
  std::vector<std::string> names;
  for (int ordinal = 0; static_cast<int>(names.size()) < count; ++ordinal) {
    std::string name = observed.service.metadata.name + "-" + std::to_string(ordinal);
    if (!taken.contains(name)) names.push_back(std::move(name));
  }
  return names;
}

void Planner::ScaleOut() {
  const int there = static_cast<int>(summary.working.size() + summary.uncounted.size());
  const int missing = spec.replicas - there;
  if (missing <= 0) return;
  if (const TimePoint retry_at = RetryAt(summary, observed.policy); now < retry_at) {
    summary.retry_at = retry_at;
    LookAgainAt(retry_at);
    return;
  }
  summary.choice =
      ChoosePath(spec, launch_identity, summary.working, missing, observed.policy, now);
  if (summary.choice->waiting > 0) {
    LookAgainAt(summary.choice->waiting_until.value_or(now + observed.policy.peer_wait));
  }
  for (std::string& name : FreeNames(summary.choice->start_now)) {
    actions.push_back(CreateInstance{.pod = std::move(name),
                                     .path = summary.choice->path,
                                     .path_reason = summary.choice->reason,
                                     .launch_identity = launch_identity,
                                     .revision = revision,
                                     .decided_at = now});
  }
  summary.creating = summary.choice->start_now;
}

Plan Planner::Run() {
  Sort();
  CountFailures();
  if (!observed.service.metadata.deleting) {
    DeleteFailed();
    ScaleIn();
    ReplaceOutdated();
    ScaleOut();
  }
  Plan plan;
  plan.status = MakeStatus(observed, summary, now);
  plan.new_scale_outs = NewScaleOuts(observed.service.status, plan.status);
  plan.notes = MakeNotes(observed, summary, plan.status, plan.new_scale_outs);
  for (const Instance* instance : summary.uncounted) {
    if (instance->timeline) continue;
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

}  // namespace

Plan MakePlan(const Observed& observed, TimePoint now) {
  return Planner{
      .observed = observed, .now = now, .summary = {}, .actions = {}, .replan_at = std::nullopt}
      .Run();
}

}  // namespace rouse::plan
