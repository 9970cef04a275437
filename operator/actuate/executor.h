// Performs actions through the API server and the agents. Everything it does may be done twice.

#pragma once

#include <functional>
#include <string>
#include <vector>

#include "operator/actuate/agents.h"
#include "operator/actuate/cache.h"
#include "operator/actuate/outcome.h"
#include "operator/actuate/pending.h"
#include "operator/kube/api.h"
#include "operator/plan/action.h"
#include "operator/plan/planner.h"
#include "operator/plan/render_pod.h"

namespace rouse::actuate {

class Executor {
 public:
  /// Makes what the pods of a namespace need there, before any is created.
  using Prepare = std::function<Status(const std::string& ns)>;

  /// `may_act` is asked before each action: false once this process does not lead any more.
  /// `confirm` makes sure of that with the API server, before guards are told to wake: they are
  /// told first and claimed then. References must outlive the executor.
  Executor(kube::Api& api, Agents& agents, const Cache& cache, Pending& pending,
           std::function<bool()> may_act, std::function<Status()> confirm, Prepare prepare)
      : api_(api),
        agents_(agents),
        cache_(cache),
        pending_(pending),
        may_act_(std::move(may_act)),
        confirm_(std::move(confirm)),
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
  const std::function<Status()> confirm_;
  const Prepare prepare_;
};

}  // namespace rouse::actuate
