// One run of the planner while it is under way. Only for planner.cpp and pass_guards.cpp.

#pragma once

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "operator/api/launch_identity.h"
#include "operator/plan/planner.h"
#include "operator/plan/scale_in.h"
#include "operator/plan/summary.h"

namespace rouse::plan {

using Pointers = std::vector<const Instance*>;

struct Pass {
  const Observed& observed;
  const TimePoint now;
  const api::Spec& spec = observed.service.spec;
  const std::string launch_identity = api::LaunchIdentity(spec);
  const std::string revision = api::Revision(spec);

  Summary summary;
  std::vector<Action> actions;
  std::optional<TimePoint> replan_at;

  void LookAgainAt(TimePoint time) { replan_at = std::min(replan_at.value_or(time), time); }

  // planner.cpp
  void Sort();
  void CountFailures();
  void DeleteFailed();
  int Target() const;
  void ScaleIn();
  void ReplaceOutdated();
  void ScaleOut();
  void Delete(const Instance& instance, Cause cause, std::string reason);
  std::vector<std::string> FreeNames(int count) const;
  Plan Run();

  // pass_guards.cpp
  void FinishLeaving();
  void ReleaseSleepers();
  Pointers Claimable() const;
  int ClaimGuards(int missing);
  std::vector<Sleeper> Sleepers() const;
  void WakeAgain();
  void TendGuards();
  void TopUpGuards();
  void SetGates();
  void TendEndpoint();
  /// Out of the endpoints first, if it may be in them; then Delete.
  void Retire(const Instance& instance, Cause cause, std::string reason);
  int UsableGuards() const;
  bool BecomesGuard(const Instance& instance) const;
  void Create(const PathChoice& choice, Role role, bool begins_without = false);
  /// All that may have weights, or come to have them.
  Pointers Sources() const;
};

}  // namespace rouse::plan
