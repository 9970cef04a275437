// Performs actions through the API server. Everything it does may be done twice.

#pragma once

#include <functional>
#include <string>
#include <vector>

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
  bool replan = false;              ///< A name turned out to be taken: plan again at once.
};

class Executor {
 public:
  /// `may_act` is asked before each call: false once this process does not lead any more.
  /// References must outlive the executor.
  Executor(kube::Api& api, const Cache& cache, Pending& pending, std::function<bool()> may_act)
      : api_(api), cache_(cache), pending_(pending), may_act_(std::move(may_act)) {}

  /// Performs all actions in order, deletions whatever else failed; after a creation that failed
  /// no other is tried. Blocks. Thread-safe.
  Outcome Perform(const api::ModelService& service, const std::vector<plan::Action>& actions,
                  const plan::PodConfig& pods);

 private:
  struct Run;

  kube::Api& api_;
  const Cache& cache_;
  Pending& pending_;
  const std::function<bool()> may_act_;
};

}  // namespace rouse::actuate
