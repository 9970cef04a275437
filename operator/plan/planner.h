// The operator's decisions: what to do next for one ModelService, given what is observed.
//
// Pure. No I/O, no clock, no randomness, no logging: everything a decision depends on is an
// argument, everything it leads to is in the returned value. The shell around it is
// operator/actuate; tools/plan_preview runs the same function over a state read from a file.
//
// Decisions, in order:
//   1. A ModelService that is being deleted gets no new pods; its pods go with it (garbage
//      collection by owner reference).
//   2. Failures are counted in the status first (once for instances that started in the same
//      wave), and only in a later run, when the count is on the API object, are the failed pods
//      deleted. Their replacements wait: not after the first failure, then 10 s, 20 s, ... 5 min.
//      Any edit of the spec ends the wait.
//   3. Too many instances: the least useful go (scale_in.h).
//   4. Too few: each missing one starts by the best path (choose_path.h), or waits for a source.
//   5. Instances of an older revision that do not serve are replaced at once, and guards; those
//   that
//      serve only as far as never fewer than wanted - rollout.maxUnavailable serve, and, where
//      guards are kept, only while one of the new revision can take their place. Meanwhile there
//      are up to rollout.maxSurge more than wanted.
//
// Guarantees, each a property test in operator/tests/plan_property_test.cpp:
//  - Settles: performing the actions and planning again reaches a plan without actions.
//  - Never too many: instances that are neither failed nor going are never more than wanted because
//    of a plan; never takes away more than is too many.
//  - Never repeats: an instance that is starting counts as there.
//  - Deterministic: equal arguments give equal plans, whatever the order of instances.

#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "operator/plan/action.h"
#include "operator/plan/observed.h"

namespace rouse::plan {

/// Something a user would ask about; becomes a Kubernetes Event on the ModelService.
struct Note {
  bool warning = false;
  std::string reason;  ///< CamelCase, of a small set.
  std::string action;
  std::string text;

  bool operator==(const Note&) const = default;
};

/// A start that failed before it ever served.
struct FailedStart {
  std::string pod;
  StartPath path = StartPath::kStorage;
  double seconds = 0;  ///< From the decision to when it was found to have failed.

  bool operator==(const FailedStart&) const = default;
};

/// A guard that sleeps and could be woken now.
struct Sleeper {
  std::string pod;
  std::string uid;
  std::string address;  ///< Its agent's.

  bool operator==(const Sleeper&) const = default;
};

/// What shall happen now, what the status says, and when to look again.
struct Plan {
  /// In the order in which to perform them; deletions come first. Empty when all is as wanted.
  std::vector<Action> actions;
  api::ServiceStatus status;
  /// What the new status says that the observed one did not; to be told once it is written.
  std::vector<Note> notes;
  /// Starts that reached their first token and are new in status.scale_outs, oldest first.
  std::vector<api::ScaleOut> new_scale_outs;
  /// Starts whose failure the new status counts for the first time.
  std::vector<FailedStart> failed_starts;
  /// Those that are not taken now, in the order in which a scale-out would wake them.
  std::vector<Sleeper> sleepers;
  /// When to plan again even if nothing changes; nullopt means wait for the next change.
  std::optional<std::chrono::milliseconds> replan_after;

  bool operator==(const Plan&) const = default;
};

/// Plans the next step for one ModelService. `now` is used for deadlines and decided-at stamps.
Plan MakePlan(const Observed& observed, TimePoint now);

/// The status for a ModelService whose spec cannot be read.
api::ServiceStatus InvalidSpecStatus(api::ServiceStatus previous, std::int64_t generation,
                                     const std::string& error, TimePoint now);

/// Puts actions that could not be performed into the status: Degraded with reason ActionFailed.
void AddActionErrors(api::ServiceStatus& status, const std::vector<std::string>& errors,
                     TimePoint now);

}  // namespace rouse::plan
