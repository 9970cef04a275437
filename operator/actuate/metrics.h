// What Prometheus scrapes. Names for reconciles, queue and client are those of controller-runtime
// and client-go, so that existing dashboards fit. Thread-safe.

#pragma once

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "operator/api/status.h"

namespace rouse::actuate {

class Metrics {
 public:
  Metrics();

  /// A start that reached its first token: its phases, its total and its bytes.
  void ScaleOutFinished(const api::ScaleOut& scale_out);
  /// A start that failed; `path` as it was decided.
  void ScaleOutFailed(const std::string& path, double seconds);

  /// An action was tried; plan::KindOf.
  void Acted(std::string_view kind);

  /// The instances of one ModelService by state; states that are not given are gone.
  void Instances(const std::string& ns, const std::string& name,
                 const std::map<std::string, int>& by_state);
  /// How many it asks for.
  void Desired(const std::string& ns, const std::string& name, int replicas, int guards);
  /// The ModelService is gone: so are its series.
  void ForgetInstances(const std::string& ns, const std::string& name);

  /// `result` is "success", "error", "requeue_after" or "requeue".
  void Reconciled(const std::string& result, double seconds);
  void QueueAdded() { queue_adds_.Increment(); }
  void QueueRetried() { queue_retries_.Increment(); }
  void QueueWaited(double seconds) { queue_seconds_.Observe(seconds); }
  void QueueWorked(double seconds) { work_seconds_.Observe(seconds); }
  /// A report of an agent was answered with this HTTP status.
  void Reported(int code);
  void RequestAnswered(const std::string& method, int code, std::optional<double> seconds);
  /// A certificate was asked for: "signed", or the status code of why not.
  void CertificateAsked(std::string_view outcome);
  /// A call of KEDA's was answered.
  void ScalerAnswered(const std::string& method, const std::string& code);
  void Notes(bool warning) { (warning ? warnings_ : normals_).Increment(); }

  /// Called at each scrape, to set what is read rather than counted.
  void OnScrape(std::function<void(Metrics&)> read) { on_scrape_ = std::move(read); }
  /// Sets a gauge, made at the first call.
  void SetGauge(const std::string& name, const std::string& help,
                const std::map<std::string, std::string>& labels, double value);
  /// Raises a counter that somebody else counts to `value`, made at the first call.
  void RaiseCounter(const std::string& name, const std::string& help,
                    const std::map<std::string, std::string>& labels, double value);

  /// Prometheus' text format.
  std::string Text();

 private:
  prometheus::Registry registry_;
  prometheus::Family<prometheus::Histogram>& phase_seconds_;
  prometheus::Family<prometheus::Histogram>& total_seconds_;
  prometheus::Family<prometheus::Counter>& bytes_;
  prometheus::Family<prometheus::Counter>& actions_;
  prometheus::Family<prometheus::Gauge>& instances_;
  prometheus::Family<prometheus::Gauge>& desired_;
  prometheus::Family<prometheus::Counter>& reconciles_;
  prometheus::Counter& reconcile_errors_;
  prometheus::Histogram& reconcile_seconds_;
  prometheus::Counter& queue_adds_;
  prometheus::Counter& queue_retries_;
  prometheus::Histogram& queue_seconds_;
  prometheus::Histogram& work_seconds_;
  prometheus::Family<prometheus::Counter>& reports_;
  prometheus::Family<prometheus::Counter>& requests_;
  prometheus::Family<prometheus::Histogram>& request_seconds_;
  prometheus::Family<prometheus::Counter>& scaler_calls_;
  prometheus::Family<prometheus::Counter>& certificates_;
  prometheus::Family<prometheus::Counter>& events_;
  prometheus::Counter& normals_;
  prometheus::Counter& warnings_;
  std::function<void(Metrics&)> on_scrape_;

  std::mutex mutex_;
  /// Of each ModelService by state or role.
  using ServiceGauges =
      std::map<std::pair<std::string, std::string>, std::map<std::string, prometheus::Gauge*>>;
  ServiceGauges instance_gauges_;                                         ///< Guarded by mutex_.
  ServiceGauges desired_gauges_;                                          ///< Guarded by mutex_.
  std::map<std::string, prometheus::Family<prometheus::Gauge>*> gauges_;  ///< Guarded by mutex_.
  std::map<std::string, prometheus::Family<prometheus::Counter>*>
      counters_;  ///< Guarded by mutex_.
};

}  // namespace rouse::actuate
