#include "operator/actuate/app.h"

#include <malloc.h>
#include <pthread.h>
#include <unistd.h>

#include <fstream>

#include "common/log.h"
#include "operator/api/names.h"
#include "operator/plan/agent_url.h"

namespace rouse::actuate {
namespace {

using std::chrono::milliseconds;

/// For a page of a long list over a slow link.
constexpr milliseconds kListDeadline{60'000};
/// An agent waits for its report's answer meanwhile.
constexpr milliseconds kReportTimeout{5'000};
/// More than reports and token reviews together may hold while the API server thinks.
constexpr int kTlsThreads = 16;

api::TimePoint Now() {
  return std::chrono::time_point_cast<std::chrono::microseconds>(std::chrono::system_clock::now());
}

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

App::App(AppOptions options, std::shared_ptr<Metrics> metrics)
    : options_(std::move(options)),
      metrics_(std::move(metrics)),
      queue_(kube::BackoffPolicy{milliseconds(50), milliseconds(30'000)},
             std::chrono::steady_clock::now,
             {.on_waited = [this](double seconds) { metrics_->QueueWaited(seconds); },
              .on_worked = [this](double seconds) { metrics_->QueueWorked(seconds); }}),
      cache_(
          [this](const std::string& key) {
            metrics_->QueueAdded();
            queue_.Add(key);
            LoadChanged(key);
          },
          [this](const plan::Instance* before, const plan::Instance* after) {
            const plan::Instance& pod = after != nullptr ? *after : *before;
            pending_.Seen(ServiceKey(pod), pod.uid, after);
          }) {}

Result<std::unique_ptr<App>> App::Create(const kube::Config& config, AppOptions options) {
  auto metrics = std::make_shared<Metrics>();
  std::unique_ptr<App> app(new App(std::move(options), metrics));
  const auto client = [&](milliseconds timeout, milliseconds deadline, int retries) {
    kube::ClientOptions o;
    o.timeout = timeout;
    o.deadline = deadline;
    o.retries = retries;
    o.on_answer = [metrics](const std::string& method, int code, std::optional<double> seconds) {
      metrics->RequestAnswered(method, code, seconds);
    };
    return kube::Client::Create(config, o);
  };
  const milliseconds lease_timeout = app->options_.lease.retry * 3 / 2;
  ROUSE_ASSIGN_OR_RETURN(app->client_, client(app->options_.call_timeout, kListDeadline, 3));
  ROUSE_ASSIGN_OR_RETURN(app->lease_client_, client(lease_timeout, lease_timeout, 0));
  ROUSE_ASSIGN_OR_RETURN(app->report_client_, client(kReportTimeout, kReportTimeout, 0));
  app->WireTrust();
  app->agents_ =
      std::make_unique<HttpAgents>(app->keeper_->credentials(), app->options_.agent_timeout);
  app->relay_ = std::make_unique<LoadRelay>([raw = app.get()] { return raw->LeaderUrl(); },
                                            app->keeper_->credentials());
  app->reports_ =
      std::make_unique<Reports>(*app->report_client_, app->cache_, *metrics, app->options_.policy,
                                &Now, [raw = app.get()](const PodLoad& l) { raw->TakeLoad(l); });
  kube::EventOptions events;
  events.instance = app->options_.own_name;
  app->events_ = std::make_unique<kube::EventRecorder>(*app->client_, events);
  metrics->OnScrape([raw = app.get()](Metrics& m) { raw->Scrape(m); });
  ROUSE_ASSIGN_OR_RETURN(
      app->server_,
      http::Server::Listen(app->options_.listen_host, app->options_.port,
                           [raw = app.get()](const http::Request& r) { return raw->Answer(r); },
                           {.max_body_bytes = 4u << 10, .threads = 2, .tls = std::nullopt}));
  ROUSE_ASSIGN_OR_RETURN(
      app->tls_server_,
      http::Server::Listen(
          app->options_.listen_host, app->options_.tls_port,
          [raw = app.get()](const http::Request& r) { return raw->AnswerTrusted(r); },
          {.max_body_bytes = 1u << 20,
           .threads = kTlsThreads,
           .tls = http::ServerTls{.credentials = app->keeper_->credentials(),
                                  .client = tls::ClientCertificate::kOptional}}));
  app->keeper_->Start();
  return app;
}

void App::WireTrust() {
  bundles_ = std::make_unique<trust::Bundles>(*client_);
  trust::KeeperOptions keeper{
      .secret = {options_.own_namespace, options_.authorities_secret},
      .policy = options_.trust,
      .addresses = {},
      .hosts = {},
      .now = [] { return std::chrono::time_point_cast<std::chrono::seconds>(Now()); },
      .leads = [this] { return Leading(); },
      .namespaces = [this] { return cache_.Namespaces(); }};
  if (!options_.own_ip.empty()) keeper.addresses.push_back(options_.own_ip);
  if (!options_.service_name.empty()) {
    const std::string name = options_.service_name + "." + options_.own_namespace;
    keeper.hosts = {name + ".svc", name};
  }
  keeper_ = std::make_unique<trust::Keeper>(*report_client_, *bundles_, std::move(keeper));
  issuer_ = std::make_unique<trust::Issuer>(
      *keeper_,
      trust::Issuer::Hooks{
          .review =
              [this](const Json& review) {
                return report_client_->Create(kube::TokenReviews(), review);
              },
          .pod = [this](const std::string& key) { return cache_.Pod(key); },
          .managed =
              [this](const plan::Instance& pod) {
                const auto owner = cache_.Service(ServiceKey(pod));
                return owner && owner->service.metadata.uid == pod.owner_uid;
              },
          .on_outcome = [this](std::string_view outcome) { metrics_->CertificateAsked(outcome); }});
}

// The leader makes them; without them no agent of a pod could be reached.
bool App::AwaitAuthorities() {
  for (;;) {
    const Status done = keeper_->Step();
    std::unique_lock lock(mutex_);
    if (stopping_ || !lost_.empty()) return false;
    if (done.ok()) return true;
    log::Warning("waiting for the certificate authorities", {{"error", done.ToString()}});
    changed_.wait_for(lock, milliseconds(500), [this] { return stopping_ || !lost_.empty(); });
  }
}

App::~App() {
  tls_server_.reset();
  server_.reset();
  if (keeper_) keeper_->Stop();  // It asks whether we lead.
  relay_.reset();
  metrics_->OnScrape({});
  if (services_) services_->Stop();
  if (pods_) pods_->Stop();
  if (endpoints_) endpoints_->Stop();
  if (nodes_) nodes_->Stop();
}

void App::Stop() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  if (client_) client_->StopWaiting();
}

Status App::Run() {
  const auto informer = [&](kube::Resource resource, kube::StoreSink& sink, std::string labels) {
    kube::InformerOptions o;
    o.resource = std::move(resource);
    o.ns = options_.watch_namespace;
    o.label_selector = std::move(labels);
    o.silence = options_.watch_silence;
    return std::make_unique<kube::Informer>(*client_, sink, o);
  };
  {
    std::lock_guard lock(mutex_);
    services_ = informer(kube::ModelServices(), cache_.service_sink(), "");
    pods_ = informer(kube::Pods(), cache_.pod_sink(), api::kLabelModelService);
    endpoints_ = informer(kube::Services(), cache_.endpoint_sink(), api::kLabelModelService);
    // Not waited for: a plan that does not know of lost nodes is right, and made anew once it does.
    if (options_.watch_namespace.empty()) nodes_ = informer(kube::Nodes(), cache_.node_sink(), "");
  }
  if (!WaitUntilReady()) return Status();
  malloc_trim(0);  // The first full list is in the stores; its text and trees are not needed again.

  reconciler_ = std::make_unique<Reconciler>(
      *client_, *agents_, cache_, pending_, *metrics_,
      [this](const api::ObjectMeta& service, const plan::Note& note) { Tell(service, note); },
      [this] { return Leading(); },
      ReconcilerOptions{.policy = options_.policy,
                        .pods = options_.pods,
                        .clock = Now,
                        .confirm = [this] { return ConfirmLeading(); },
                        .prepare = [this](const std::string& ns) { return keeper_->Prepare(ns); }});

  kube::LeaderOptions leader;
  leader.lease = {options_.own_namespace, options_.lease_name};
  leader.identity = kube::UniqueIdentity(options_.own_name);
  leader.address = OwnUrl();
  leader.timing = options_.lease;
  leader.on_elected = [this] {
    std::lock_guard lock(mutex_);
    elected_ = true;
    changed_.notify_all();
  };
  leader.on_lost = [this](const std::string& why) {
    std::lock_guard lock(mutex_);
    lost_ = why;
    changed_.notify_all();
  };
  ROUSE_ASSIGN_OR_RETURN(auto elector, kube::LeaderElector::Start(*lease_client_, leader));
  Status scaler;
  {
    std::unique_lock lock(mutex_);
    elector_ = std::move(elector);
    changed_.wait(lock, [this] { return stopping_ || elected_; });
    if (elected_ && !stopping_) {
      lock.unlock();
      if (AwaitAuthorities()) {
        StartWorkers();
        scaler = StartScaler();
      }
      lock.lock();
    }
    changed_.wait(lock, [&] { return stopping_ || !lost_.empty() || !scaler.ok(); });
  }
  StopScaler();
  // Nothing may be written once another could lead: workers end before the lease is given back.
  client_->StopWaiting();
  queue_.ShutDown();
  for (std::thread& worker : workers_) worker.join();
  {
    std::lock_guard lock(mutex_);
    elector = std::move(elector_);
  }
  elector.reset();  // Its thread may want the lock.
  std::lock_guard lock(mutex_);
  return lost_.empty() ? scaler : Unavailable("the leadership was lost: " + lost_);
}

// Without the caches every plan would be wrong, without the URL every pod.
bool App::WaitUntilReady() {
  for (;;) {
    std::string missing;
    if (!services_->WaitSynced(milliseconds(200))) {
      missing = "modelservices are not listed yet: " + services_->last_error();
    } else if (!pods_->WaitSynced(milliseconds(200))) {
      missing = "pods are not listed yet: " + pods_->last_error();
    } else if (!endpoints_->WaitSynced(milliseconds(200))) {
      missing = "services are not listed yet: " + endpoints_->last_error();
    } else {
      missing = FindAgentFacingUrl();
    }
    std::unique_lock lock(mutex_);
    if (stopping_) return false;
    not_ready_ = missing;
    if (missing.empty()) return true;
    changed_.wait_for(lock, milliseconds(300), [this] { return stopping_; });
  }
}

// A pod may have no DNS, so agents are told an address and not a name.
std::string App::FindAgentFacingUrl() {
  if (!options_.pods.agent_facing_url.empty()) return "";
  const std::string unknown = "the address that agents report to is not known yet: ";
  const kube::ObjectName name{options_.own_namespace, options_.service_name};
  auto service = client_->Get(kube::Services(), name);
  if (!service.ok()) return unknown + service.status().ToString();
  const auto url = plan::AgentFacingUrl(*service, name.Key(), options_.tls_port);
  if (!url.ok()) return unknown + url.status().message();
  options_.pods.agent_facing_url = *url;
  log::Info("agents report to", {{"url", options_.pods.agent_facing_url}});
  return "";
}

bool App::Stopping() const {
  std::lock_guard lock(mutex_);
  return stopping_ || !lost_.empty();
}

bool App::Leading() const {
  std::lock_guard lock(mutex_);
  return elector_ && elector_->leading();
}

// The elector outlives the workers, who alone ask; its callbacks want the lock.
Status App::ConfirmLeading() const {
  kube::LeaderElector* elector = nullptr;
  {
    std::lock_guard lock(mutex_);
    elector = elector_.get();
  }
  if (elector == nullptr) return Unavailable("this operator does not lead any more");
  return elector->Confirm(options_.lease.retry * 3 / 2);  // One that is not late.
}

void App::StartWorkers() {
  for (int i = 0; i < options_.workers; ++i) {
    workers_.emplace_back([this, i] {
      pthread_setname_np(pthread_self(), ("reconcile-" + std::to_string(i)).c_str());
      Work();
    });
  }
}

void App::Work() {
  while (const auto key = queue_.Get()) {
    if (Stopping()) {  // What is left is the next leader's.
      queue_.Done(*key);
      continue;
    }
    const auto begin = std::chrono::steady_clock::now();
    const auto again = reconciler_->Reconcile(*key);
    std::string result = "success";
    if (!again.ok()) {
      const auto delay = queue_.AddRateLimited(*key);
      metrics_->QueueRetried();
      result = "error";
      log::Warning("reconcile failed", {{"modelservice", *key},
                                        {"error", again.status().ToString()},
                                        {"retry_ms", delay.count()}});
    } else {
      queue_.Forget(*key);
      if (*again && (*again)->count() == 0) {
        queue_.Add(*key);
        result = "requeue";
      } else if (*again) {
        queue_.AddAfter(*key, **again);
        result = "requeue_after";
      }
    }
    queue_.Done(*key);
    const auto took = std::chrono::steady_clock::now() - begin;
    metrics_->Reconciled(result, std::chrono::duration<double>(took).count());
  }
}

void App::Tell(const api::ObjectMeta& service, const plan::Note& note) {
  metrics_->Notes(note.warning);
  events_->Emit({.regarding = kube::ReferenceTo(kube::ModelServices(), {service.ns, service.name},
                                                service.uid),
                 .type = note.warning ? kube::EventType::kWarning : kube::EventType::kNormal,
                 .reason = note.reason,
                 .action = note.action,
                 .note = note.text});
}

std::string App::NotReady() const {
  {
    std::lock_guard lock(mutex_);
    if (!not_ready_.empty()) return not_ready_;
  }
  return keeper_->facts().not_ready;
}

Status App::StartScaler() {
  if (options_.scaler_port == 0) return {};
  auto server = scaler::Server::Start(
      {.host = options_.listen_host,
       .port = options_.scaler_port,
       .on_answered = [this](const auto& method,
                             const auto& code) { metrics_->ScalerAnswered(method, code); }},
      [this](const std::string& key) { return LookAtLoad(key); });
  if (!server.ok()) return server.status().WithContext("the endpoint for KEDA");
  log::Info("answering KEDA", {{"port", (*server)->port()}});
  std::lock_guard lock(scaler_mutex_);
  scaler_ = *std::move(server);
  return {};
}

void App::StopScaler() {
  std::unique_ptr<scaler::Server> ended;
  std::lock_guard lock(scaler_mutex_);
  ended.swap(scaler_);
}

void App::LoadChanged(const std::string& key) {
  std::lock_guard lock(scaler_mutex_);
  if (scaler_ != nullptr) scaler_->Changed(key);
}

// What was told to whoever does not lead is kept there too: it may lead soon.
void App::TakeLoad(const PodLoad& load) {
  const auto pod = cache_.Pod(kube::ObjectName{load.ns, load.pod}.Key());
  if (!pod || pod->uid != load.uid) return;
  loads_.Put(load.uid, {.load = load.load,
                        .at = std::chrono::steady_clock::now(),
                        .kept = plan::LoadKept(cache_.pod_count())});
  if (Leading()) {
    LoadChanged(ServiceKey(*pod));
  } else {
    relay_->Add(load);
  }
}

http::Response App::TakeLoads(const http::Request& request) {
  if (!request.peer || request.peer->kind != tls::Identity::Kind::kOperator) {
    return http::ErrorResponse(PermissionDenied("only another operator may say what loads are"));
  }
  if (!Leading()) return http::ErrorResponse(Unavailable("this operator does not lead"));
  const auto body = json::Parse(request.body, "loads", 1u << 20);
  const auto loads = body.ok() ? PodLoadsFromJson(*body) : body.status();
  if (!loads.ok()) return http::ErrorResponse(loads.status());
  for (const PodLoad& load : *loads) TakeLoad(load);
  return http::JsonResponse("{}");
}

Result<plan::ServiceLoad> App::LookAtLoad(const std::string& key) const {
  if (!Leading()) return Unavailable("this operator does not lead any more");
  const auto stored = cache_.Service(key);
  if (!stored) return NotFound("there is no ModelService " + key);
  if (!stored->error.ok()) {
    return Unavailable("ModelService " + key + " cannot be read: " + stored->error.message());
  }
  return plan::LoadOf(
      stored->service, cache_.PodsOf(key),
      [this](const std::string& uid) { return loads_.Get(uid); }, std::chrono::steady_clock::now());
}

std::string App::OwnUrl() const {
  if (options_.own_ip.empty()) return "";
  const bool ipv6 = options_.own_ip.find(':') != std::string::npos;
  return "https://" + (ipv6 ? "[" + options_.own_ip + "]" : options_.own_ip) + ":" +
         std::to_string(tls_server_->port());
}

std::string App::LeaderUrl() const {
  std::lock_guard lock(mutex_);
  if (!elector_ || elector_->leading()) return "";
  return elector_->holder_address();
}

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
