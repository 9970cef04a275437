// What the agent does on threads of its own: model files, the pull, digests.

#include <algorithm>

#include "agent/fabric/fallback.h"
#include "agent/server/agent.h"
#include "agent/server/clock.h"
#include "common/log.h"
#include "common/stoppable_sleep.h"

namespace rouse::agent {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

/// The operator may name other peers at any time.
constexpr milliseconds kLookAgain{100};
constexpr milliseconds kHealthTimeout{2'000};
/// After a failure, and for leases that have ended.
constexpr milliseconds kPrepareAgain{2'000};

}  // namespace

void Agent::Hydrate(const std::stop_token& stop) {
  if (options_.plan.files_from_peer) {
    const Status status = HydrateFromPeers(stop);
    if (stop.stop_requested()) return;
    if (!status.ok()) {
      log::Error("model files not in place", {{"error", status.ToString()}});
      Apply(event::Failure{"put the model's files in place: " + status.message()});
      return NotifyWeights();
    }
    Apply(event::FilesInPlace{NowUs()});
    NotifyWeights();
  }
  files_in_place_ = true;
  if (options_.model_dir.empty()) return;
  // So that the first peer that asks need not wait for the digests.
  if (const auto listed = files_.List(); !listed.ok()) {
    log::Warning("model files cannot be listed for peers", {{"error", listed.status().message()}});
  }
}

Status Agent::HydrateFromPeers(const std::stop_token& stop) {
  PeerPicker picker(options_.picker, Clock::now());
  while (!stop.stop_requested()) {
    const auto choice =
        picker.Next(reporter_ != nullptr ? reporter_->peers() : std::vector<Peer>(), Clock::now());
    if (const auto* give_up = std::get_if<PeerPicker::GiveUp>(&choice)) {
      return Unavailable(give_up->reason);
    }
    if (const auto* wait = std::get_if<PeerPicker::WaitUntil>(&choice)) {
      SleepUntil(std::min(wait->at, Clock::now() + kLookAgain), stop);
      continue;
    }
    const Peer& peer = std::get<PeerPicker::Take>(choice).peer;
    const auto client = ToPeer(peer);
    if (!client.ok()) {
      picker.OnFailed(peer, client.status(), false, Clock::now());
      continue;
    }
    const HydrateOutcome outcome =
        HydrateModelFiles(**client, options_.model_dir, [&] { return stop.stop_requested(); });
    metrics_.CountModelFiles(outcome.bytes);
    if (outcome.status.ok()) {
      log::Info("model files in place", {{"peer", peer.pod},
                                         {"files", outcome.files},
                                         {"bytes", outcome.bytes},
                                         {"unchanged", outcome.unchanged}});
      return Status();
    }
    if (outcome.ours) return outcome.status;
    log::Warning("model files not fetched from this peer",
                 {{"peer", peer.pod}, {"error", outcome.status.ToString()}});
    picker.OnFailed(peer, outcome.status, outcome.bytes > 0, Clock::now());
  }
  return Status(StatusCode::kCancelled, "hydrate stopped");
}

// UCX does not say that it has not found the way it should have.
void Agent::CheckTransport(const std::string& transport) {
  const auto reason = fabric::FallbackReason(transport, fabric::ReadTopology(),
                                             fabric::UcxSettings::OfEnvironment());
  if (reason) {
    metrics_.CountFallback();
    log::Warning("fallback from RDMA to TCP", {{"reason", *reason}});
  }
  const std::scoped_lock lock(mutex_);
  transport_fallback_ = reason.value_or("");
}

Result<std::unique_ptr<http::Client>> Agent::ToPeer(const Peer& peer) const {
  if (certifier_ == nullptr) return http::Client::Create(peer.address);
  // Peers are of one ModelService, and so of one namespace.
  return http::Client::Create(
      peer.address, http::MutualTls{.credentials = certifier_->credentials(),
                                    .peer = tls::Agent(options_.self.pod_namespace, peer.pod)});
}

PeerPullSettings Agent::PullSettings() const {
  return {.launch_identity = options_.launch_identity,
          .requester = options_.self.pod_namespace + "/" + options_.self.pod,
          .dial = [this](const Peer& peer) { return ToPeer(peer); },
          .picker = options_.picker,
          .transfer = options_.transfer,
          .node_folder = options_.publisher.node_folder,
          .broadcasting = options_.publisher.broadcasting};
}

PeerPullHooks Agent::PullHooks(std::function<void(const Peer&)> on_opened) {
  return {
      .peers = [this] { return reporter_ != nullptr ? reporter_->peers() : std::vector<Peer>(); },
      // One that may not load from storage waits for whatever comes.
      .expecting =
          [this] {
            return reporter_ == nullptr || !options_.plan.fall_back_to_storage ||
                   reporter_->expecting();
          },
      .on_opened =
          [this, opened = std::move(on_opened)](const Peer& peer) {
            log::Info("pull started", {{"peer", peer.pod}, {"address", peer.address}});
            opened(peer);
            NotifyWeights();
          },
      .on_placed = [this] { NotifyWeights(); },
      .on_progress = [this] { NotifyWeights(); },
      .on_complete = [] {},
      .on_verified = [this](std::uint64_t bytes) { metrics_.SetPulled(bytes); },
      .on_transfer =
          [this](const Status& status, const transfer::PullCounters& counters, double seconds,
                 const std::string& transport) {
            metrics_.CountTransfer(status.ok(), counters.bytes_arrived, counters.mismatches,
                                   seconds, transport);
            log::Info("rank transferred", {{"ok", status.ok()},
                                           {"bytes", counters.bytes_verified},
                                           {"mismatches", counters.mismatches},
                                           {"seconds", seconds},
                                           {"transport", transport}});
            if (status.ok()) CheckTransport(transport);
          },
      .on_put_aside =
          [this](const Peer& peer, const Status& why) {
            metrics_.CountPutAside(why.code());
            log::Warning(
                "weights are not pulled from this peer any more",
                {{"peer", peer.pod}, {"address", peer.address}, {"error", why.ToString()}});
          }};
}

/// Whether the engine of an agent of this pod's before this one serves: it has its weights, and
/// asks for none until it is started again.
bool Agent::EngineGoesOn() const {
  if (!began_again_ || options_.probe.url.empty()) return false;
  const auto client = http::Client::Create(options_.probe.url);
  if (!client.ok()) return false;
  const auto answer =
      (*client)->Send({.target = "/health", .timeout = kHealthTimeout, .deadline = kHealthTimeout});
  return answer.ok() && answer->status == 200;
}

void Agent::Pull(const std::stop_token& stop) {
  if (EngineGoesOn()) {
    // Weights that nobody asks for would only double the memory that the pod has.
    log::Info("the engine goes on with its weights; they are pulled again when it asks for them");
    Apply(event::EngineGoesOn{NowUs()});
    while (!engine_asked_ && !stop.stop_requested()) SleepUntil(Clock::now() + kLookAgain, stop);
  }
  if (!role_->active()) return Apply(event::PullAbandoned{role_->standing().message, NowUs()});
  std::int64_t started = 0;
  const PeerPullHooks hooks = PullHooks([&](const Peer& peer) {
    const std::int64_t now = NowUs();
    if (started == 0) started = now;
    Apply(event::PullOpened{peer.pod, now});
  });
  const PeerPullSettings settings = PullSettings();
  const Status status = PullFromPeers(*store_, settings, hooks, stop);
  if (stop.stop_requested()) return;
  const std::int64_t now = NowUs();
  if (started != 0) {
    const std::scoped_lock lock(mutex_);
    machine_.AddLane({"Pull", started, now});
  }
  if (status.ok()) {
    Apply(event::PullComplete{now});
  } else {
    log::Warning("pull given up", {{"error", status.ToString()}});
    Apply(event::PullAbandoned{status.message(), now});
  }
  NotifyWeights();
}

void Agent::PrepareWeights(const std::stop_token& stop) {
  while (!stop.stop_requested()) {
    const std::int64_t started = NowUs();
    const auto done = store_->Prepare(stop);
    if (stop.stop_requested()) return;
    if (!done.ok()) log::Error("weights cannot be served", {{"error", done.status().ToString()}});
    if (done.ok() && *done != WeightStore::Work::kNone) {
      if (*done == WeightStore::Work::kDigested) {
        const std::scoped_lock lock(mutex_);
        machine_.AddLane({"Digest", started, NowUs()});
        Show();
      } else {
        log::Info("weights are served to peers",
                  {{"complete", *done == WeightStore::Work::kOffered}});
      }
      NotifyWeights();
      continue;
    }
    FallAsleepWithoutWeights();
    std::unique_lock lock(work_mutex_);
    work_changed_.wait_for(lock, stop, kPrepareAgain, [&] { return done.ok() && work_; });
    work_ = false;
  }
}

}  // namespace rouse::agent
