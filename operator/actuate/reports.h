// The agents' end of the operator: POST /v1/agents/report (docs/protocols.md §1).
//
// What a report says is kept as annotations on the pod, never in memory, so every replica of the
// operator answers alike, leader or not, and a restarted one knows what its predecessor was told.
// Its load alone, which changes all the time, is not.

#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "common/http.h"
#include "operator/actuate/cache.h"
#include "operator/actuate/load_relay.h"
#include "operator/actuate/metrics.h"
#include "operator/kube/api.h"
#include "operator/plan/observed.h"

namespace rouse::actuate {

/// The annotations that stand for `report`. An absent one is to be removed.
std::map<std::string, std::string> ReportAnnotations(const AgentReport& report);

/// Whether `report` has to be written over what `pod` has. Bytes that only grow while weights
/// arrive are not: the next change of state brings them along.
bool NeedsWrite(const plan::Instance& pod, const AgentReport& report);

/// How soon one of so many agents should report again: soon while it waits for something that an
/// answer can bring, rarely once it serves (plan::QuietReport).
std::int64_t ReportAfterMs(AgentState state, std::size_t agents);

class Reports {
 public:
  /// References must outlive it. `api` should have a short timeout and no retries: the agent comes
  /// again anyway. `on_load` hears of the load in each report of a pod of ours; must be quick.
  Reports(kube::Api& api, const Cache& cache, Metrics& metrics, const plan::Policy& policy,
          std::function<plan::TimePoint()> now, std::function<void(const PodLoad&)> on_load)
      : api_(api),
        cache_(cache),
        metrics_(metrics),
        policy_(policy),
        now_(std::move(now)),
        on_load_(std::move(on_load)) {}

  /// Answers one request. Thread-safe; blocks for one call to the API server at most.
  http::Response Handle(const http::Request& request);

 private:
  /// The assignment, as it is sent.
  Result<std::string> Take(const http::Request& request);
  /// Who keeps compile caches in a namespace.
  struct Keepers {
    std::string list;    ///< As JSON; empty: nobody.
    std::string digest;  ///< Of the list.
  };
  std::shared_ptr<const Keepers> KeepersIn(const std::string& ns);
  Status Write(const plan::Instance& pod, const AgentReport& report);

  kube::Api& api_;
  const Cache& cache_;
  Metrics& metrics_;
  const plan::Policy policy_;
  const std::function<plan::TimePoint()> now_;
  const std::function<void(const PodLoad&)> on_load_;
  std::atomic<int> writing_{0};
  std::mutex mutex_;
  std::uint64_t keepers_version_ = 0;  ///< Guarded by mutex_: of the cache, that keepers_ is of.
  std::map<std::string, std::shared_ptr<const Keepers>> keepers_;  ///< Guarded by mutex_.
};

}  // namespace rouse::actuate
