#include "operator/actuate/app.h"

#include <malloc.h>
#include <pthread.h>

#include "common/host_in_url.h"
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

std::string App::OwnUrl() const {
  if (options_.own_ip.empty()) return "";
  return "https://" + HostInUrl(options_.own_ip) + ":" + std::to_string(tls_server_->port());
}

std::string App::LeaderUrl() const {
  std::lock_guard lock(mutex_);
  if (!elector_ || elector_->leading()) return "";
  return elector_->holder_address();
}

}  // namespace rouse::actuate
