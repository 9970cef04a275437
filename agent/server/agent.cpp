#include "agent/server/agent.h"

#include <pthread.h>

#include <filesystem>

#include "agent/fabric/node_facts.h"
#include "agent/startup/engine_load.h"
#include "agent/state/tree.h"
#include "agent/transfer/host_context.h"
#include "common/log.h"

namespace rouse::agent {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

namespace fs = std::filesystem;

constexpr const char* kTimelineFile = "timeline.json";
constexpr std::uint64_t kMaxTimelineBytes = 64u << 10;

std::jthread NamedThread(const char* name, std::function<void(const std::stop_token&)> run) {
  return std::jthread([name, run = std::move(run)](const std::stop_token& stop) {
    pthread_setname_np(pthread_self(), name);
    run(stop);
  });
}

std::string WhyNone(const StartPlan& plan) {
  return plan.path == StartPath::kStorage ? "this instance was started to load from storage"
                                          : "no peer has opened its weights yet";
}

}  // namespace

Agent::Agent(AgentOptions options)
    : options_(std::move(options)),
      node_facts_(fabric::LookAtNode(options_.publisher.node_folder)),
      machine_(options_.plan),
      files_(options_.model_dir),
      commands_([this] {
        if (engine_ != nullptr) engine_->Wake();
      }),
      xids_("libnvidia-ml.so.1", [this](const nvml::XidEvent& event) { OnXid(event); }) {}

Result<std::unique_ptr<Agent>> Agent::Start(AgentOptions options) {
  auto agent = std::unique_ptr<Agent>(new Agent(std::move(options)));
  ROUSE_RETURN_IF_ERROR(agent->Wire());
  return agent;
}

Status Agent::Wire() {
  ROUSE_ASSIGN_OR_RETURN(auto host, transfer::CreateHostContext());
  log::Info(
      "network for weights",
      {{"ucx", ucx::LibraryVersion()}, {"rails", host.rails.ports}, {"reason", host.rails.reason}});
  if (auto& broadcasting = options_.publisher.broadcasting; broadcasting != nullptr) {
    if (const Status status = broadcasting->Check(); !status.ok()) {
      log::Warning("no broadcasts: peers pull", {{"error", status.ToString()}});
      broadcasting.reset();
    }
  }
  ROUSE_ASSIGN_OR_RETURN(auto publisher, transfer::Publisher::Create(options_.publisher));
  store_ = std::make_unique<WeightStore>(std::move(host.ucx), std::move(publisher),
                                         options_.weights, WhyNone(options_.plan));
  ROUSE_RETURN_IF_ERROR(WireHttp());
  RestoreTimeline();
  WireRole();
  WireState();
  if (!options_.operator_url.empty()) ROUSE_RETURN_IF_ERROR(WireReporter());
  if (!options_.plugin_dir.empty()) {
    const Status copied = CopyTree(options_.plugin_source, options_.plugin_dir);
    if (!copied.ok()) Apply(event::Failure{"put the plugin in place: " + copied.message()});
  }
  stream_ = std::make_unique<CheckpointStream>(
      CheckpointStreamOptions{.folder = options_.model_dir},
      CheckpointStreamHooks{
          .on_change =
              [this] {
                if (engine_ != nullptr) engine_->Wake();
              },
          .on_read = [this](const LoadOutcome& outcome) { OnCheckpointRead(outcome); }});
  ROUSE_RETURN_IF_ERROR(WireGraphs());
  ROUSE_RETURN_IF_ERROR(WireEngine());
  BeginState();
  hydrate_ = NamedThread("hydrate", [this](const auto& stop) { Hydrate(stop); });
  if (options_.plan.path != StartPath::kStorage) {
    pull_ = NamedThread("pull", [this](const auto& stop) { Pull(stop); });
  }
  prepare_ = NamedThread("weights", [this](const auto& stop) { PrepareWeights(stop); });
  Apply(event::Begun{});
  NotifyWeights();
  up_ = true;
  return Status();
}

Status Agent::WireHttp() {
  const bool trusted = options_.operator_url.starts_with("https://");
  const Port plain = trusted ? Port::kPlain : Port::kOnly;
  ROUSE_ASSIGN_OR_RETURN(
      http_,
      http::Server::Listen(options_.listen_host, options_.port,
                           [this, plain](const auto& in) { return Handle(plain, in); },
                           {.threads = trusted ? 2 : options_.http_threads, .tls = std::nullopt}));
  std::string address = "http://127.0.0.1:" + std::to_string(http_->port());
  if (trusted) {
    ROUSE_ASSIGN_OR_RETURN(
        certifier_,
        Certifier::Start({.operator_url = options_.operator_url,
                          .ca_file = options_.ca_file,
                          .token_file = options_.token_file,
                          .self = tls::Agent(options_.self.pod_namespace, options_.self.pod,
                                             options_.self.pod_uid)},
                         {.on_asked = [this](bool ok) { metrics_.CountCertificate(ok); },
                          .on_certificate =
                              [this](tls::TimePoint end) {
                                metrics_.SetCertificateEnd(end.time_since_epoch().count());
                              }}));
    ROUSE_ASSIGN_OR_RETURN(
        tls_http_, http::Server::Listen(
                       options_.listen_host, options_.tls_port,
                       [this](const auto& in) { return Handle(Port::kTrusted, in); },
                       {.threads = options_.http_threads,
                        .tls = http::ServerTls{.credentials = certifier_->credentials(),
                                               .client = tls::ClientCertificate::kRequired}}));
    address = "https://127.0.0.1:" + std::to_string(tls_http_->port());
  } else if (!options_.operator_url.empty()) {
    log::Warning("neither the operator nor peers prove who they are: its URL is not https",
                 {{"operator", options_.operator_url}});
  }
  if (options_.self.address.empty()) options_.self.address = address;
  return {};
}

Result<std::unique_ptr<http::Client>> Agent::ToOperator() const {
  if (certifier_ == nullptr) return http::Client::Create(options_.operator_url);
  return http::Client::Create(
      options_.operator_url,
      http::MutualTls{.credentials = certifier_->credentials(), .peer = tls::Operator()});
}

Status Agent::WireReporter() {
  ROUSE_ASSIGN_OR_RETURN(auto client, ToOperator());
  reporter_ = std::make_unique<Reporter>(
      std::move(client),
      Reporter::Hooks{.begin =
                          [this](const std::stop_token& stop) {
                            if (certifier_ != nullptr) certifier_->Await(stop);
                          },
                      .make =
                          [this] {
                            Holdings holdings = store_->holdings();
                            if (state_ != nullptr) {
                              holdings.state_origin = state_->origin();
                              holdings.state_miss = state_->miss();
                            }
                            const std::scoped_lock lock(mutex_);
                            holdings.transport_fallback = transport_fallback_;
                            holdings.load = load_;
                            AgentReport report =
                                BuildReport(options_.self, StandingNow(), holdings);
                            report.node_facts = node_facts_;
                            load_told_ = report.load;
                            load_told_at_ = Clock::now();
                            return report;
                          },
                      .on_sent = [this](const Status& sent) { metrics_.CountReport(sent.ok()); }});
  return {};
}

Status Agent::WireEngine() {
  auto engine = EngineServer::Start(options_.engine_socket, *this);
  if (engine.ok()) {
    engine_ = *std::move(engine);
  } else {
    Apply(event::Failure{engine.status().message()});
  }
  if (!options_.probe.url.empty()) {
    ROUSE_ASSIGN_OR_RETURN(auto client, http::Client::Create(options_.probe.url));
    canary_ = std::make_unique<Canary>(std::move(client), options_.probe.served_model,
                                       options_.probe.canary_timeout);
    ROUSE_ASSIGN_OR_RETURN(
        probe_,
        EngineProbe::Start(
            options_.probe,
            {.on_healthy = [this](std::int64_t at) { Apply(event::EngineHealthy{at}); },
             .on_unhealthy =
                 [this](const auto& why) {
                   if (state_ != nullptr) state_->SetServing(false);
                   Apply(event::EngineUnhealthy{why});
                 },
             .on_first_token = [this](std::int64_t at) { Apply(event::FirstToken{at}); },
             .on_serving = [this](bool anew) { OnServing(anew); },
             .on_canary_failed = [this](const auto& why) { Apply(event::CanaryFailed{why}); },
             .on_load = [this](const auto& load) { OnLoad(load); }}));
  }
  return Status();
}

Agent::~Agent() {
  prepare_.request_stop();  // Ends a digest that is under way.
  up_ = false;
  tls_http_.reset();
  http_.reset();
  for (std::jthread* thread : {&pull_, &hydrate_, &prepare_}) thread->request_stop();
  for (std::jthread* thread : {&pull_, &hydrate_, &prepare_}) {
    if (thread->joinable()) thread->join();
  }
  if (state_ != nullptr) state_->Stop();
  if (stream_ != nullptr) stream_->End();  // It wakes the engine's thread, which asks it.
  if (graphs_ != nullptr) graphs_->Stop();
  if (role_ != nullptr) role_->Stop();  // It commands the engine; the socket's thread tells it.
  engine_.reset();
  probe_.reset();     // May wait for an engine that hangs.
  reporter_.reset();  // After all that report changes.
}

void Agent::Drain(milliseconds longest) {
  store_->Withdraw();
  if (reporter_ != nullptr) reporter_->Changed();
  const auto until = Clock::now() + longest;
  if (state_ != nullptr) state_->HandOver(longest);
  while (store_->lease_count() > 0 && Clock::now() < until) {
    std::this_thread::sleep_for(milliseconds(20));
  }
}

void Agent::Apply(const Event& happened) {
  {
    const std::scoped_lock lock(mutex_);
    machine_.Apply(happened);
    Show();
  }
  if (reporter_ != nullptr) reporter_->Changed();
}

Standing Agent::StandingNow() const {
  return StandingOf(machine_, role_ != nullptr ? role_->standing() : RoleStanding(),
                    store_ != nullptr && store_->HasPlaceholders());
}

void Agent::OnLoad(const Result<EngineLoad>& load) {
  bool news = false;
  {
    const std::scoped_lock lock(mutex_);
    const std::string why = load.status().message();
    if (why != no_load_ && !why.empty()) {
      log::Warning("the engine's load is not known", {{"error", why}});
    }
    no_load_ = why;
    load_ = load.ok() ? std::optional(*load) : std::nullopt;
    const auto since = std::chrono::duration_cast<milliseconds>(Clock::now() - load_told_at_);
    news = StandingNow().state == AgentState::kServing && IsNews(load_told_, load_, since);
  }
  if (news && reporter_ != nullptr) reporter_->Changed();
}

void Agent::Show() {
  const Standing now = StandingNow();
  if (now.state != shown_) {
    log::Info("state changed", {{"from", ToString(shown_.value_or(AgentState::kStarting))},
                                {"to", ToString(now.state)},
                                {"reason", now.message}});
    metrics_.SetState(now.state);
    shown_ = now.state;
  }
  KeepTimeline(now.timeline);
}

// A container that is started again must not measure its pod's start anew, so the timeline is kept
// beside the socket, whose folder lives as long as the pod.
void Agent::RestoreTimeline() {
  const fs::path folder = fs::path(options_.engine_socket).parent_path();
  const auto text = ReadWholeFile((folder / kTimelineFile).string(), kMaxTimelineBytes);
  if (!text.ok()) return;
  const auto document = json::Parse(*text, "timeline");
  auto timeline = document.ok() ? TimelineFromJson(*document, "timeline") : document.status();
  if (!timeline.ok() || (options_.plan.decided_at_us != 0 && timeline->path != StartPath::kWake &&
                         timeline->decided_at_us != options_.plan.decided_at_us)) {
    log::Warning("kept timeline not used", {{"error", timeline.status().message()}});
    return;
  }
  began_again_ = true;
  timeline_kept_ = *timeline;
  metrics_.SetTimeline(*timeline);
  machine_.RestoreTimeline(*std::move(timeline));
}

void Agent::KeepTimeline(const std::optional<Timeline>& timeline) {
  if (!timeline || timeline == timeline_kept_) return;
  if (!timeline_kept_ || timeline_kept_->decided_at_us != timeline->decided_at_us) {
    log::Info("first token", {{"timeline", ToJson(*timeline)}});
  }
  timeline_kept_ = timeline;
  metrics_.SetTimeline(*timeline);
  const std::string folder = fs::path(options_.engine_socket).parent_path().string();
  const Status kept = WriteFileBelow(folder, {.path = kTimelineFile, .mode = 0644, .modified = {}},
                                     json::Dump(ToJson(*timeline)));
  if (!kept.ok()) log::Warning("timeline not kept", {{"error", kept.message()}});
}

void Agent::NotifyWork() {
  const std::scoped_lock lock(work_mutex_);
  work_ = true;
  work_changed_.notify_all();
}

void Agent::NotifyWeights() {
  NotifyWork();
  if (engine_ != nullptr) engine_->Wake();
  if (reporter_ != nullptr) reporter_->Changed();
}

}  // namespace rouse::agent
