// One run for one ModelService: observe → plan → perform → publish → tell.
//
// Thread-safe for different keys; the work queue sees to it that no key is in two hands.

#pragma once

#include <chrono>
#include <functional>
#include <optional>
#include <string>

#include "operator/actuate/cache.h"
#include "operator/actuate/executor.h"
#include "operator/actuate/metrics.h"
#include "operator/actuate/pending.h"
#include "operator/kube/api.h"
#include "operator/plan/planner.h"

namespace rouse::actuate {

/// What the cache and our own recent writes show of one ModelService; nullopt when there is none.
/// Pods that carry its label and have another owner only occupy names.
std::optional<plan::Observed> Observe(const std::string& key, const Cache& cache, Pending& pending,
                                      const plan::Policy& policy);

/// Where Events go; EventRecorder::Emit behind it.
using Tell = std::function<void(const api::ObjectMeta& service, const plan::Note& note)>;

struct ReconcilerOptions {
  plan::Policy policy;
  plan::PodConfig pods;
  /// Look at every ModelService this often even if nothing changed.
  std::chrono::milliseconds resync{600'000};
  std::function<api::TimePoint()> clock;
  std::function<Status()> confirm;  ///< See Executor.
  Executor::Prepare prepare;
};

class Reconciler {
 public:
  /// References must outlive it. `may_act`: see Executor.
  Reconciler(kube::Api& api, Agents& agents, const Cache& cache, Pending& pending, Metrics& metrics,
             Tell tell, std::function<bool()> may_act, ReconcilerOptions options);

  /// The time after which to come again (zero: at once; nullopt: the ModelService is gone), or the
  /// first error, to be tried again with backoff.
  Result<std::optional<std::chrono::milliseconds>> Reconcile(const std::string& key);

 private:
  Outcome Perform(const api::ModelService& service, const plan::Plan& plan);
  Status Publish(const api::ModelService& service, const api::ServiceStatus& status);
  void Count(const api::ModelService& service, const plan::Plan& plan);
  void KeepConnected(const std::string& key, const std::string& ns,
                     const std::vector<plan::Sleeper>& sleepers);

  kube::Api& api_;
  Agents& agents_;
  const Cache& cache_;
  Pending& pending_;
  Metrics& metrics_;
  const Tell tell_;
  const std::function<bool()> may_act_;
  const ReconcilerOptions options_;
  Executor executor_;
};

}  // namespace rouse::actuate
