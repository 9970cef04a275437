// Performs actions through the API server and the agents. Everything it does may be done twice.

#pragma once

#include <chrono>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "operator/actuate/agents.h"
#include "operator/actuate/cache.h"
#include "operator/actuate/pending.h"
#include "operator/kube/api.h"
#include "operator/plan/action.h"
#include "operator/plan/planner.h"
#include "operator/plan/render_pod.h"

namespace rouse::actuate {

struct Outcome {
  std::vector<std::string> errors;  ///< What could not be done; the rest was.
  std::vector<plan::Note> notes;    ///< What was done, for Events.
  /// A name turned out to be taken, or a guard not to be had, and is remembered as such: plan again
  /// at once.
  bool replan = false;
  /// Wakes that were undone: seconds each, from the claim on.
  std::vector<double> failed_wakes;
  /// What could not be done yet, and is no error: plan again after this long.
  std::optional<std::chrono::milliseconds> again;
};

class Executor {
 public:
  /// Makes what the pods of a namespace need there, before any is created.
  using Prepare = std::function<Status(const std::string& ns)>;

  /// `may_act` is asked before each call: false once this process does not lead any more.
  /// References must outlive the executor.
  Executor(kube::Api& api, Agents& agents, const Cache& cache, Pending& pending,
           std::function<bool()> may_act, Prepare prepare)
      : api_(api),
        agents_(agents),
        cache_(cache),
        pending_(pending),
        may_act_(std::move(may_act)),
        prepare_(std::move(prepare)) {}

  /// Performs all actions in order (claims of guards side by side), deletions whatever else failed;
  /// after a creation that failed no other is tried. Blocks. Thread-safe.
  Outcome Perform(const api::ModelService& service, const std::vector<plan::Action>& actions,
                  const plan::PodConfig& pods);

 private:
  struct Run;

  kube::Api& api_;
  Agents& agents_;
  const Cache& cache_;
  Pending& pending_;
  const std::function<bool()> may_act_;
  const Prepare prepare_;
};

}  // namespace rouse::actuate
