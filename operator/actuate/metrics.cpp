#include "operator/actuate/metrics.h"

#include <prometheus/text_serializer.h>

#include "common/timeline.h"

namespace rouse::actuate {
namespace {

// From a wake of a tenth of a second to a load from storage of half an hour.
const prometheus::Histogram::BucketBoundaries kStartBuckets = {
    0.05, 0.1, 0.25, 0.5, 1,   2,   4,   6,   8,   12,   16,  24,
    32,   48,  64,   96,  128, 192, 256, 384, 512, 1024, 2048};
const prometheus::Histogram::BucketBoundaries kReconcileBuckets = {
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60};

template <typename Builder>
auto& Make(Builder builder, prometheus::Registry& registry, const char* name, const char* help) {
  return builder.Name(name).Help(help).Register(registry);
}

}  // namespace

Metrics::Metrics()
    : phase_seconds_(Make(prometheus::BuildHistogram(), registry_, "rouse_scaleout_seconds",
                          "Seconds of each phase of the starts that reached their first token")),
      total_seconds_(Make(prometheus::BuildHistogram(), registry_, "rouse_scaleout_total_seconds",
                          "Seconds from the decision to the first token, or to the failure")),
      bytes_(Make(prometheus::BuildCounter(), registry_, "rouse_scaleout_bytes_total",
                  "Weight bytes of finished starts, by path and by where they came from")),
      actions_(Make(prometheus::BuildCounter(), registry_, "rouse_actions_total",
                    "What was decided and tried, by kind of action")),
      instances_(Make(prometheus::BuildGauge(), registry_, "rouse_instances",
                      "Instances of each ModelService by state")),
      desired_(Make(prometheus::BuildGauge(), registry_, "rouse_instances_desired",
                    "Instances that each ModelService asks for, replicas and guards")),
      reconciles_(Make(prometheus::BuildCounter(), registry_, "controller_runtime_reconcile_total",
                       "Reconciles by result")),
      reconcile_errors_(Make(prometheus::BuildCounter(), registry_,
                             "controller_runtime_reconcile_errors_total",
                             "Reconciles that ended in an error")
                            .Add({{"controller", "modelservice"}})),
      reconcile_seconds_(Make(prometheus::BuildHistogram(), registry_,
                              "controller_runtime_reconcile_time_seconds", "Seconds of a reconcile")
                             .Add({{"controller", "modelservice"}}, kReconcileBuckets)),
      queue_adds_(Make(prometheus::BuildCounter(), registry_, "workqueue_adds_total",
                       "Keys added to the queue")
                      .Add({{"name", "modelservice"}})),
      queue_retries_(Make(prometheus::BuildCounter(), registry_, "workqueue_retries_total",
                          "Keys added again after an error")
                         .Add({{"name", "modelservice"}})),
      queue_seconds_(Make(prometheus::BuildHistogram(), registry_,
                          "workqueue_queue_duration_seconds",
                          "Seconds that a key waited for a worker")
                         .Add({{"name", "modelservice"}}, kReconcileBuckets)),
      work_seconds_(Make(prometheus::BuildHistogram(), registry_, "workqueue_work_duration_seconds",
                         "Seconds that a worker held a key")
                        .Add({{"name", "modelservice"}}, kReconcileBuckets)),
      reports_(Make(prometheus::BuildCounter(), registry_, "rouse_agent_reports_total",
                    "Reports of agents by the HTTP status of the answer")),
      requests_(Make(prometheus::BuildCounter(), registry_, "rest_client_requests_total",
                     "Requests to the API server by status code and method")),
      request_seconds_(Make(prometheus::BuildHistogram(), registry_,
                            "rest_client_request_duration_seconds",
                            "Seconds until the API server's answer, by method; without watches")),
      scaler_calls_(Make(prometheus::BuildCounter(), registry_, "grpc_server_handled_total",
                         "Calls of KEDA's external scaler protocol that were answered, by code")),
      certificates_(Make(prometheus::BuildCounter(), registry_, "rouse_certificates_total",
                         "Certificates that agents asked for, by outcome")),
      events_(Make(prometheus::BuildCounter(), registry_, "rouse_events_total",
                   "Kubernetes Events emitted, by type")),
      normals_(events_.Add({{"type", "Normal"}})),
      warnings_(events_.Add({{"type", "Warning"}})) {
  // There from the first scrape, so that the increase over the first start of a kind is right.
  for (const auto& [value, path] : kStartPaths) {
    for (const char* outcome : {"success", "failure"}) {
      total_seconds_.Add({{"path", std::string(path)}, {"outcome", outcome}}, kStartBuckets);
    }
  }
}

void Metrics::ScaleOutFinished(const api::ScaleOut& scale_out) {
  for (const api::PhaseSeconds& phase : scale_out.phases) {
    phase_seconds_.Add({{"path", scale_out.path}, {"phase", phase.name}}, kStartBuckets)
        .Observe(phase.seconds);
  }
  total_seconds_.Add({{"path", scale_out.path}, {"outcome", "success"}}, kStartBuckets)
      .Observe(scale_out.seconds);
  for (const auto& [source, bytes] : scale_out.bytes_by_source) {
    bytes_.Add({{"path", scale_out.path}, {"source", source}})
        .Increment(static_cast<double>(bytes));
  }
}

void Metrics::ScalerAnswered(const std::string& method, const std::string& code) {
  scaler_calls_
      .Add({{"grpc_service", "externalscaler.ExternalScaler"},
            {"grpc_method", method},
            {"grpc_code", code}})
      .Increment();
}

void Metrics::ScaleOutFailed(const std::string& path, double seconds) {
  total_seconds_.Add({{"path", path}, {"outcome", "failure"}}, kStartBuckets).Observe(seconds);
}

void Metrics::Acted(std::string_view kind) {
  actions_.Add({{"action", std::string(kind)}}).Increment();
}

void Metrics::Instances(const std::string& ns, const std::string& name,
                        const std::map<std::string, int>& by_state) {
  std::lock_guard lock(mutex_);
  auto& gauges = instance_gauges_[{ns, name}];
  for (const auto& [state, count] : by_state) {
    prometheus::Gauge*& gauge = gauges[state];
    if (gauge == nullptr) {
      gauge = &instances_.Add({{"namespace", ns}, {"modelservice", name}, {"state", state}});
    }
    gauge->Set(count);
  }
  for (auto& [state, gauge] : gauges) {
    if (!by_state.contains(state)) gauge->Set(0);
  }
}

void Metrics::Desired(const std::string& ns, const std::string& name, int replicas, int guards) {
  std::lock_guard lock(mutex_);
  auto& gauges = desired_gauges_[{ns, name}];
  const auto set = [&](const char* role, int count) {
    prometheus::Gauge*& gauge = gauges[role];
    if (gauge == nullptr) {
      gauge = &desired_.Add({{"namespace", ns}, {"modelservice", name}, {"role", role}});
    }
    gauge->Set(count);
  };
  set("active", replicas);
  set("guard", guards);
}

void Metrics::ForgetInstances(const std::string& ns, const std::string& name) {
  std::lock_guard lock(mutex_);
  const auto forget = [&](prometheus::Family<prometheus::Gauge>& family, ServiceGauges& services) {
    const auto it = services.find({ns, name});
    if (it == services.end()) return;
    for (auto& [label, gauge] : it->second) family.Remove(gauge);
    services.erase(it);
  };
  forget(instances_, instance_gauges_);
  forget(desired_, desired_gauges_);
}

void Metrics::Reconciled(const std::string& result, double seconds) {
  reconciles_.Add({{"controller", "modelservice"}, {"result", result}}).Increment();
  if (result == "error") reconcile_errors_.Increment();
  reconcile_seconds_.Observe(seconds);
}

void Metrics::Reported(int code) {
  reports_.Add({{"code", std::to_string(code)}}).Increment();
}

void Metrics::CertificateAsked(std::string_view outcome) {
  certificates_.Add({{"outcome", std::string(outcome)}}).Increment();
}

void Metrics::RequestAnswered(const std::string& method, int code, std::optional<double> seconds) {
  const std::string text = code == 0 ? "<error>" : std::to_string(code);
  requests_.Add({{"code", text}, {"method", method}}).Increment();
  if (seconds) request_seconds_.Add({{"verb", method}}, kReconcileBuckets).Observe(*seconds);
}

void Metrics::SetGauge(const std::string& name, const std::string& help,
                       const std::map<std::string, std::string>& labels, double value) {
  std::lock_guard lock(mutex_);
  auto& family = gauges_[name];
  if (family == nullptr) {
    family = &prometheus::BuildGauge().Name(name).Help(help).Register(registry_);
  }
  family->Add(labels).Set(value);
}

void Metrics::RaiseCounter(const std::string& name, const std::string& help,
                           const std::map<std::string, std::string>& labels, double value) {
  std::lock_guard lock(mutex_);
  auto& family = counters_[name];
  if (family == nullptr) {
    family = &prometheus::BuildCounter().Name(name).Help(help).Register(registry_);
  }
  prometheus::Counter& counter = family->Add(labels);
  if (value > counter.Value()) counter.Increment(value - counter.Value());
}

std::string Metrics::Text() {
  if (on_scrape_) on_scrape_(*this);
  return prometheus::TextSerializer().Serialize(registry_.Collect());
}

}  // namespace rouse::actuate
