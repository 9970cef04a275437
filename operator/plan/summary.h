// From what the planner found out to what a user reads: status, conditions, events. Pure.

#pragma once

#include <optional>
#include <set>
#include <string>
#include <vector>

#include "operator/plan/choose_path.h"
#include "operator/plan/observed.h"
#include "operator/plan/planner.h"

namespace rouse::plan {

struct Failed {
  const Instance* instance = nullptr;
  std::string why;
};

struct Failures {
  int in_a_row = 0;
  std::optional<TimePoint> last;
};

/// What one run of the planner found and decided. Pointers are into Observed.
struct Summary {
  std::vector<const Instance*>
      working;  ///< Neither failed nor going; shrinks as actions are decided.
  std::vector<const Instance*> guards;   ///< The same, of guards.
  std::vector<const Instance*> leaving;  ///< To be deleted once out of the endpoints.
  std::vector<const Instance*> going;    ///< Being deleted already.
  std::vector<const Instance*> lost;     ///< On a node that is lost.
  std::vector<Failed> failed;
  std::set<const Instance*> uncounted;  ///< Failed ones that the observed status does not know.

  std::vector<const Instance*> claimed;         ///< Guards that become replicas.
  std::vector<const Instance*> released;        ///< Replicas that did not wake: guards again.
  std::vector<const Instance*> awaited_guards;  ///< To be woken as soon as they sleep.
  std::string no_wake;                          ///< Why no more guards were claimed.

  int active = 0;    ///< Size of `working` before any action.
  int ready = 0;     ///< Of them, those that serve.
  int outdated = 0;  ///< Of `working`, those of another revision.
  int waking = 0;    ///< Of `working`, claimed guards that have not got up yet.
  int creating = 0;
  int creating_guards = 0;
  int demoted = 0;   ///< Replicas that become guards.
  int stopping = 0;  ///< Deletions of instances that had not failed.

  Failures failures;                  ///< Of replicas.
  Failures guard_failures;            ///< Theirs hold up no replica.
  std::optional<TimePoint> retry_at;  ///< Set when replacements wait for it.
  std::optional<PathChoice> choice;   ///< Set when replicas were missing and none had to wait.
};

/// When a replacement may be created; in the past when nothing speaks against it.
TimePoint RetryAt(const Failures& failures, const Policy& policy);

api::ServiceStatus MakeStatus(const Observed& observed, const Summary& summary, TimePoint now);

/// Those in `after` whose uid is not in `before`, oldest first.
std::vector<api::ScaleOut> NewScaleOuts(const api::ServiceStatus& before,
                                        const api::ServiceStatus& after);

std::vector<Note> MakeNotes(const Observed& observed, const Summary& summary,
                            const api::ServiceStatus& after,
                            const std::vector<api::ScaleOut>& new_scale_outs);

}  // namespace rouse::plan
