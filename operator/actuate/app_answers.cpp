// What the operator answers over HTTP, its metrics among it.

#include <unistd.h>

#include <fstream>

#include "operator/actuate/app.h"

namespace rouse::actuate {
namespace {

double ResidentBytes() {
  std::ifstream statm("/proc/self/statm");
  double total = 0, resident = 0;
  statm >> total >> resident;
  return resident * static_cast<double>(::sysconf(_SC_PAGESIZE));
}

http::Response Text(int status, std::string body) {
  http::Response response;
  response.status = status;
  response.headers["Content-Type"] = "text/plain; charset=utf-8";
  response.body = std::move(body);
  return response;
}

}  // namespace

// The port of agents: all but /v1/certificates looks at who asks.
http::Response App::AnswerTrusted(const http::Request& request) {
  const std::string path = request.target.substr(0, request.target.find('?'));
  const bool known =
      path == "/v1/agents/report" || path == "/v1/operators/loads" || path == "/v1/certificates";
  if (!known) {
    return Text(404, "there is /v1/certificates, /v1/agents/report and /v1/operators/loads\n");
  }
  if (request.method != "POST") return Text(405, "only POST is answered here\n");
  if (path == "/v1/operators/loads") return TakeLoads(request);
  if (const std::string why = NotReady(); !why.empty()) {
    return http::ErrorResponse(Unavailable("the operator is not ready: " + why));
  }
  return path == "/v1/certificates" ? issuer_->Handle(request) : reports_->Handle(request);
}

http::Response App::Answer(const http::Request& request) {
  const std::string path = request.target.substr(0, request.target.find('?'));
  const bool get = request.method == "GET" || request.method == "HEAD";
  if (!get) return Text(405, "only GET is answered here\n");
  if (path == "/healthz") return Text(200, "ok\n");
  if (path == "/readyz") {
    const std::string why = NotReady();
    return why.empty() ? Text(200, "ok\n") : Text(503, why + "\n");
  }
  if (path == "/metrics") {
    http::Response response = Text(200, metrics_->Text());
    response.headers["Content-Type"] = "text/plain; version=0.0.4; charset=utf-8";
    return response;
  }
  return Text(404, "there is /metrics, /healthz and /readyz; agents ask the port with TLS\n");
}

void App::Scrape(Metrics& metrics) const {
  metrics.SetGauge("leader_election_master_status", "1 if this operator leads",
                   {{"name", options_.lease_name}}, Leading() ? 1 : 0);
  metrics.SetGauge("workqueue_depth", "Keys that wait for a worker", {{"name", "modelservice"}},
                   static_cast<double>(queue_.depth()));
  const kube::UnfinishedWork unfinished = queue_.Unfinished();
  metrics.SetGauge("workqueue_unfinished_work_seconds",
                   "Seconds of reconciles that are under way, all together",
                   {{"name", "modelservice"}}, unfinished.seconds);
  metrics.SetGauge("workqueue_longest_running_processor_seconds",
                   "Seconds of the longest reconcile that is under way", {{"name", "modelservice"}},
                   unfinished.longest_seconds);
  metrics.SetGauge("controller_runtime_active_workers", "Reconciles that are under way",
                   {{"controller", "modelservice"}}, unfinished.keys);
  metrics.SetGauge("controller_runtime_max_concurrent_reconciles",
                   "Reconciles that may be under way at a time", {{"controller", "modelservice"}},
                   options_.workers);
  metrics.SetGauge("process_resident_memory_bytes", "Resident memory", {}, ResidentBytes());
  metrics.SetGauge("rouse_cached_objects", "Objects in the cache", {{"resource", "modelservices"}},
                   static_cast<double>(cache_.service_count()));
  metrics.SetGauge("rouse_cached_objects", "Objects in the cache", {{"resource", "pods"}},
                   static_cast<double>(cache_.pod_count()));
  metrics.SetGauge("rouse_cached_objects", "Objects in the cache", {{"resource", "nodes"}},
                   static_cast<double>(cache_.node_count()));
  metrics.SetGauge("rouse_nodes_lost", "Nodes that are not ready", {},
                   static_cast<double>(cache_.lost_node_count()));
  const trust::Keeper::Facts trust = keeper_->facts();
  const auto ends = [&](const char* of, tls::TimePoint at) {
    metrics.SetGauge("rouse_certificate_end_timestamp_seconds",
                     "When a certificate ends, seconds since 1970", {{"certificate", of}},
                     static_cast<double>(at.time_since_epoch().count()));
  };
  if (trust.not_ready.empty()) {
    ends("own", trust.own_ends);
    ends("authority", trust.authority_ends);
  }
  metrics.SetGauge("rouse_trusted_authorities", "Certificate authorities that agents trust", {},
                   static_cast<double>(trust.trusted));
  const auto informer = [&](const char* resource, const kube::InformerCounters& c) {
    const std::map<std::string, std::string> labels = {{"resource", resource}};
    const auto counter = [&](const char* name, const char* help, std::uint64_t value) {
      metrics.RaiseCounter(name, help, labels, static_cast<double>(value));
    };
    counter("rouse_informer_watches_total", "Watches begun", c.watches);
    counter("rouse_informer_lists_total", "Full lists", c.lists);
    counter("rouse_informer_gone_total", "Watches or lists ended by 410 Gone", c.gone);
    counter("rouse_informer_broken_total", "Watches that broke or fell silent", c.broken);
    counter("rouse_informer_garbage_total", "Watches ended because what came made no sense",
            c.garbage);
    counter("rouse_informer_events_total", "Events taken in", c.events);
    metrics.SetGauge("rouse_informer_last_list_seconds", "How long the last full list took", labels,
                     static_cast<double>(c.last_list_us) / 1e6);
  };
  std::lock_guard lock(mutex_);
  if (services_) informer("modelservices", services_->counters());
  if (pods_) informer("pods", pods_->counters());
  if (endpoints_) informer("services", endpoints_->counters());
  if (nodes_) informer("nodes", nodes_->counters());
  metrics.RaiseCounter("rouse_events_dropped_total", "Kubernetes Events that were lost", {},
                       static_cast<double>(events_->dropped()));
}

}  // namespace rouse::actuate
