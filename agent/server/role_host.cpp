// The agent's part in sleep and wake: what RoleDriver needs of it, and what it hears of the engine.

#include <algorithm>
#include <filesystem>
#include <utility>

#include "agent/server/agent.h"
#include "agent/server/clock.h"
#include "agent/state/tree.h"
#include "common/log.h"

namespace rouse::agent {
namespace {

namespace fs = std::filesystem;

/// Who it was told to wake with is all that there will be: nobody is waited for long.
constexpr std::chrono::seconds kWakePeerDeadline{10};

constexpr const char* kRoleFile = "asleep";

}  // namespace

void Agent::WireRole() {
  role_ = std::make_unique<RoleDriver>(
      options_.role, *store_, commands_,
      RoleHooks{
          .ready_to_sleep = [this] { return ReadyToSleep(); },
          .ready_to_wake = [this] { return commands_.Ready(); },
          .pull = [this](const auto& peers, const auto& stop) { return PullToWake(peers, stop); },
          .record_canary = [this] { RecordCanary(); },
          .ask_canary = [this] { return AskCanary(); },
          .on_change =
              [this] {
                {
                  const std::scoped_lock lock(mutex_);
                  Show();
                }
                KeepRole();
                if (reporter_ != nullptr) reporter_->Changed();
              },
          .on_weights = [this] { NotifyWeights(); },
          .on_done =
              [this](CommandKind kind, const CommandValues& values) {
                log::Info("command done", {{"command", ToString(kind)}, {"values", values}});
                const auto held = values.find("gpuUsedBytes");
                if (held != values.end()) metrics_.SetGuardGpuBytes(held->second);
              },
          .on_ended =
              [this](RoleState from, RoleState to, double seconds) {
                if (from == RoleState::kWaking) metrics_.CountWake(to == RoleState::kActive);
                if (to == RoleState::kAsleep) metrics_.CountSleep(seconds);
              }});
  const fs::path kept = fs::path(options_.engine_socket).parent_path() / kRoleFile;
  std::error_code none;
  if (fs::exists(kept, none)) {
    role_kept_ = true;
    role_->FailAtOnce(
        "the agent was started again while its engine slept, or had no weights yet: what it needs "
        "to wake is gone");
  }
}

Status Agent::WireGraphs() {
  if (!options_.graphs.OurMatter()) return {};
  if (!options_.probe.url.empty()) {
    ROUSE_ASSIGN_OR_RETURN(busy_client_, http::Client::Create(options_.probe.url));
  }
  graphs_ = std::make_unique<GraphCapture>(
      options_.graphs, commands_,
      GraphCaptureHooks{
          .serving =
              [this] {
                const std::scoped_lock lock(mutex_);
                return StandingNow().state == AgentState::kServing;
              },
          .busy =
              [this] {
                if (busy_client_ == nullptr) return false;
                const auto load = AskForLoad(*busy_client_);
                return load.ok() && load->total() > 0;
              },
          .on_captured = [this](double captured,
                                double left) { metrics_.CountGraphs(captured, left); }});
  return {};
}

void Agent::KeepRole() {
  const Status kept = KeepUnfit(!role_->active() || store_->HasPlaceholders());
  if (!kept.ok()) log::Warning("sleep not kept", {{"error", kept.message()}});
}

// An agent that is started again must not take an engine that sleeps or has no weights for one that
// serves, or that may load: its folder lives as long as the pod.
Status Agent::KeepUnfit(bool unfit) {
  const std::scoped_lock lock(role_file_mutex_);
  if (role_kept_ == unfit) return {};
  const fs::path folder = fs::path(options_.engine_socket).parent_path();
  if (unfit) {
    ROUSE_RETURN_IF_ERROR(
        WriteFileBelow(folder.string(), {.path = kRoleFile, .mode = 0644, .modified = {}}, ""));
  } else {
    std::error_code gone;
    fs::remove(folder / kRoleFile, gone);
  }
  role_kept_ = unfit;
  return {};
}

// Nobody has to ask for it: as it is, it is of no use.
void Agent::FallAsleepWithoutWeights() {
  if (!store_->HasPlaceholders() || !role_->active()) return;
  {
    const std::scoped_lock lock(mutex_);
    if (!machine_.serving()) return;
  }
  if (told_to_sleep_) {
    return Apply(event::Failure{
        "its engine began without weights, and does not sleep: look at the log of the engine"});
  }
  const Status asked = role_->Ask({.role = Role::kGuard, .peers = {}, .decided_at_us = 0});
  told_to_sleep_ = asked.ok();
  if (!asked.ok()) log::Info("does not fall asleep yet", {{"reason", asked.message()}});
}

Status Agent::ReadyToSleep() const {
  {
    const std::scoped_lock lock(mutex_);
    if (!machine_.serving()) {
      return Unavailable("it does not serve (" + std::string(ToString(machine_.state())) + ")");
    }
  }
  ROUSE_RETURN_IF_ERROR(store_->Complete());
  ROUSE_RETURN_IF_ERROR(commands_.Ready());
  // What is answered without weights is no measure for anything.
  if (canary_ != nullptr && !canary_->known() && !store_->HasPlaceholders()) {
    return Unavailable("the canary's answer, by which its wake is judged, is not known yet");
  }
  return {};
}

Status Agent::PullToWake(const std::vector<Peer>& peers, const std::stop_token& stop) {
  std::int64_t started = 0;
  PeerPullHooks hooks = PullHooks([&](const Peer&) {
    if (started == 0) started = NowUs();
  });
  hooks.peers = [&] { return peers; };
  hooks.on_complete = [&] {
    if (started != 0) role_->AddLane("Pull", started, NowUs());
    role_->Apply(role_event::PullEnded{Status()});
  };
  PeerPullSettings settings = PullSettings();
  settings.picker.deadline =
      std::min<std::chrono::milliseconds>(settings.picker.deadline, kWakePeerDeadline);
  settings.picker.refused_deadline = std::chrono::milliseconds(0);
  const Status status = PullFromPeers(*store_, settings, hooks, stop);
  NotifyWeights();
  return status;
}

CanaryResult Agent::AskCanary() {
  if (canary_ == nullptr) return {.status = {}, .first_token_us = NowUs()};
  return canary_->Check();
}

void Agent::RecordCanary() {
  if (canary_ == nullptr || store_->HasPlaceholders()) return;
  const Status recorded = canary_->Record();
  if (recorded.ok()) {
    log::Info("canary's answer recorded");
  } else {
    log::Warning("canary's answer not recorded", {{"error", recorded.ToString()}});
  }
}

void Agent::OnServing(bool anew) {
  if (state_ != nullptr) state_->SetServing(true);
  if (store_->HasPlaceholders()) return NotifyWork();  // See FallAsleepWithoutWeights.
  if (role_->active() && canary_ != nullptr && (anew || !canary_->known())) RecordCanary();
}

http::Response Agent::HandleRole(const std::string& body) {
  const auto document = json::Parse(body, "request");
  const auto request = document.ok() ? RoleRequestFromJson(*document) : document.status();
  if (!request.ok()) return http::ErrorResponse(request.status());
  const Status asked = role_->Ask(*request);
  log::Info("told what to be", {{"role", ToString(request->role)},
                                {"peers", request->peers.size()},
                                {"error", asked.message()}});
  if (!asked.ok()) return http::ErrorResponse(asked);
  const std::scoped_lock lock(mutex_);
  http::Response answer =
      http::JsonResponse(json::Dump(ToJson(RoleResponse{.state = StandingNow().state})));
  answer.status = 202;
  return answer;
}

// ---- EngineHost: called on the engine socket's thread ------------------------------------------

Status Agent::ReleaseArena(std::uint32_t rank) {
  ROUSE_ASSIGN_OR_RETURN(const bool last, store_->OnReleased(rank));
  log::Info("arena released by its engine", {{"rank", rank}});
  role_->Apply(role_event::ArenaReleased{last});
  return {};
}

Result<std::optional<ArenaShape>> Agent::AwaitArena(std::uint32_t rank) {
  role_->Apply(role_event::ArenaAsked{rank, NowUs()});
  return store_->NextArena(rank);
}

CommandBook::Core Agent::OnCoreAttached(const AttachRequest& request) {
  log::Info("engine core attached", {{"core", request.core},
                                     {"cores", request.cores},
                                     {"engine", request.engine},
                                     {"engineVersion", request.engine_version}});
  const CommandBook::Core core = commands_.Attach(request);
  if (graphs_ != nullptr) {
    metrics_.ForgetGraphsLeft();
    graphs_->OnEngine();
  }
  return core;
}

void Agent::OnCoreGone(CommandBook::Core core) {
  commands_.Leave(core);
  if (up_) role_->Apply(role_event::EngineGone{"an engine core has ended its connection"});
}

std::optional<Command> Agent::NextCommand(CommandBook::Core core) {
  return commands_.Next(core);
}

void Agent::OnCommandDone(CommandBook::Core core, const CommandDoneRequest& done) {
  commands_.Done(core, done);
}

}  // namespace rouse::agent
