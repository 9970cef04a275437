#include "agent/server/agent.h"

#include "agent/fabric/node_facts.h"

#include <pthread.h>

#include <algorithm>
#include <filesystem>

#include "agent/engine/document.h"
#include "agent/server/clock.h"
#include "agent/server/rank_name.h"
#include "agent/startup/engine_load.h"
#include "agent/startup/gpu_fault.h"
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

// ---- EngineHost: called on the engine socket's thread ------------------------------------------

WeightOffer Agent::Offer(std::uint32_t rank) {
  engine_asked_ = true;
  // An engine that starts while this instance sleeps would take memory that others use, and one
  // that does when it has failed would serve for nobody.
  if (const RoleStanding role = role_->standing(); role.state != RoleState::kActive) {
    return {.identity = std::nullopt, .reason = role.message, .storage_allowed = false};
  }
  WeightOffer offer = store_->Offer(rank);
  offer.storage_allowed =
      options_.plan.path == StartPath::kStorage || options_.plan.fall_back_to_storage;
  offer.begin_without = options_.plan.begin_without;
  const std::scoped_lock lock(mutex_);
  offer.settled = machine_.settled() || machine_.failed();
  return offer;
}

void Agent::OnRankConnected(const HelloRequest& hello, WeightsFrom from) {
  log::Info("engine rank connected", {{"rank", hello.rank},
                                      {"worldSize", hello.world_size},
                                      {"engine", hello.engine},
                                      {"engineVersion", hello.engine_version},
                                      {"gpu", hello.gpu},
                                      {"source", json::NameOf<WeightsFrom>(from, kWeightsFrom)}});
  if (!hello.spawned.empty()) {
    log::Warning("engine process was spawned, not forked",
                 {{"rank", hello.rank}, {"reason", hello.spawned}});
    metrics_.CountSpawn();
  }
  if (!hello.gpu.empty()) xids_.Add(hello.gpu);
  store_->OnEngine(hello);
  Apply(event::RankConnected{hello.rank, NowUs()});
}

void Agent::OnRankDisconnected(std::uint32_t rank) {
  store_->OnEngineGone(rank);
  stream_->Leave(rank);
  if (up_) {
    role_->Apply(
        role_event::EngineGone{"the engine of " + RankName(rank) + " has ended its connection"});
  }
  Apply(event::RankDisconnected{rank});
}

void Agent::OnRefused(const HelloRequest& hello, const std::string& reason) {
  log::Error("engine refused", {{"rank", hello.rank}, {"reason", reason}});
  if (role_->active()) Apply(event::Failure{reason});
}

void Agent::OnPhase(std::uint32_t rank, const PhaseRequest& phase) {
  const std::int64_t at = std::min(phase.at_us, NowUs());
  log::Info("engine phase",
            {{"rank", rank},
             {"phase", json::NameOf<event::EnginePhase>(phase.phase, kEnginePhases)},
             {"atUs", at}});
  Apply(event::Phase{phase.phase, at});
}

void Agent::OnAnswered(std::string_view type, bool ok) {
  metrics_.CountEngineRequest(type, ok);
}

Result<std::optional<ReadyWeights>> Agent::Weights(std::uint32_t rank) {
  auto weights = store_->Weights(rank);
  if (weights.ok() && *weights) role_->Apply(role_event::WeightsGiven{NowUs()});
  return weights;
}

std::uint64_t Agent::HeldOn(const std::string& gpu) {
  return store_->HeldOn(gpu);
}

Result<ArenaShape> Agent::CreateArena(const HelloRequest& hello, std::uint64_t bytes) {
  return store_->Create(hello, bytes);
}

Result<std::vector<memory::OwnedFd>> Agent::Slabs(std::uint32_t rank, std::size_t first,
                                                  std::size_t count) {
  auto slabs = store_->Slabs(rank, first, count);
  if (slabs.ok()) role_->Apply(role_event::SlabsGiven{NowUs()});
  return slabs;
}

Status Agent::Publish(const HelloRequest& hello, const memory::OwnedFd& manifest,
                      const PublishRequest& request) {
  ROUSE_ASSIGN_OR_RETURN(const std::string text,
                         ReadDocument(manifest.get(), request.manifest_bytes));
  // Before anybody could take them for weights.
  if (request.placeholders) ROUSE_RETURN_IF_ERROR(KeepUnfit(true));
  const auto held = request.placeholders             ? WeightStore::Content::kPlaceholders
                    : stream_->Delivered(hello.rank) ? WeightStore::Content::kReadByAgent
                                                     : WeightStore::Content::kReadByEngine;
  const Status published = store_->Publish(hello, text, held);
  KeepRole();
  ROUSE_RETURN_IF_ERROR(published);
  NotifyWork();
  return Status();
}

Result<std::optional<OpenedStream>> Agent::OpenStream(const HelloRequest& hello,
                                                      const OpenStreamRequest& request) {
  auto opened = stream_->Open(hello, request);
  if (!opened.ok()) OnLoadedByEngine(hello.rank, opened.status().message());
  return opened;
}

Result<std::optional<StreamedBatch>> Agent::NextBatch(const NextBatchRequest& request) {
  return stream_->Next(request);
}

void Agent::CloseStream(const CloseStreamRequest& request) {
  stream_->Close(request.rank);
  if (!request.reason.empty()) OnLoadedByEngine(request.rank, request.reason);
}

void Agent::OnLoadedByEngine(std::uint32_t rank, const std::string& reason) {
  log::Warning("the engine loads the checkpoint by itself", {{"rank", rank}, {"reason", reason}});
  store_->AddTransport("storage/engine (" + reason + ")");
  if (reporter_ != nullptr) reporter_->Changed();
}

// On the watch's thread. A guard that sleeps on such a GPU is as useless as an engine that serves.
void Agent::OnXid(const nvml::XidEvent& event) {
  const std::string fault = FaultOf(event.gpu, event.xid);
  metrics_.CountXid(event.xid);
  log::Error("Xid", {{"gpu", event.gpu}, {"xid", event.xid}, {"fault", fault}});
  if (!fault.empty()) Apply(event::Failure{fault});
}

// On the thread that reads.
void Agent::OnCheckpointRead(const LoadOutcome& outcome) {
  const std::int64_t now = NowUs();
  metrics_.CountStorage(outcome.status.ok(), outcome.bytes, outcome.seconds);
  store_->AddStorageBytes(outcome.bytes);
  if (outcome.status.ok()) {
    log::Info("checkpoint read", {{"bytes", outcome.bytes},
                                  {"seconds", outcome.seconds},
                                  {"way", outcome.way},
                                  {"reason", outcome.reason}});
    store_->AddTransport("storage/" + outcome.way);
  } else {
    log::Warning("checkpoint not read",
                 {{"bytes", outcome.bytes}, {"error", outcome.status.ToString()}});
  }
  {
    const std::scoped_lock lock(mutex_);
    const auto took = static_cast<std::int64_t>(outcome.seconds * 1e6);
    machine_.AddLane({"Read", now - took, now});
    Show();
  }
  if (reporter_ != nullptr) reporter_->Changed();
}

}  // namespace rouse::agent
