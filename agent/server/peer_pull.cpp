#include "agent/server/peer_pull.h"

#include <algorithm>
#include <filesystem>
#include <optional>
#include <utility>

#include "agent/server/lease.h"
#include "agent/server/peer_swarm.h"
#include "agent/transfer/broadcast_pull.h"
#include "agent/transfer/node_protocol.h"
#include "agent/transfer/node_pull.h"
#include "agent/transfer/source.h"
#include "agent/transfer/staged_pull.h"
#include "common/log.h"
#include "common/seeded.h"
#include "common/stoppable_sleep.h"

namespace rouse::agent {
namespace {

using Clock = std::chrono::steady_clock;

/// The list of peers may change at any time, so no wait is longer than this.
constexpr std::chrono::milliseconds kLookAgain{100};

/// Weights of one launch with another identity are no replacement for what engines were promised.
Status CheckIdentity(const WeightStore& store, const OpenResponse& opened) {
  for (const RemoteRank& rank : opened.ranks) {
    if (rank.manifest.rank >= opened.ranks.size()) {
      return InvalidArgument("ranks: rank " + std::to_string(rank.manifest.rank) + " of " +
                             std::to_string(opened.ranks.size()));
    }
    ROUSE_RETURN_IF_ERROR(store.Fits(rank.manifest, opened.ranks.size()));
    const auto known = store.IdentityOf(rank.manifest.rank);
    if (!known) continue;
    if (const auto differences = IdentityDifferences(*known, rank.manifest.identity);
        !differences.empty()) {
      return FailedPrecondition("identity differs from that of the peer before: " +
                                differences.front());
    }
  }
  return Status();
}

/// How long a peer of this node may take to hand over its slabs.
constexpr std::chrono::milliseconds kNodeDeadline{5'000};

/// Where a peer of this node listens; nullopt when it is on another, or does not share.
std::optional<transfer::NodeSource> OnThisNode(const Peer& peer, const OpenResponse& opened,
                                               const std::string& folder) {
  // Its name is a peer's word: it must not lead out of the folder.
  if (folder.empty() || !transfer::IsNodeSocketName(opened.node_socket)) return std::nullopt;
  const std::string path = folder + "/" + opened.node_socket;
  std::error_code none;
  if (!std::filesystem::is_socket(path, none)) return std::nullopt;
  return transfer::NodeSource{.name = peer.pod, .socket = path, .lease = opened.lease};
}

bool IsComplete(const OpenResponse& opened) {
  return std::none_of(opened.ranks.begin(), opened.ranks.end(),
                      [](const RemoteRank& rank) { return rank.availability.has_value(); });
}

bool NothingThere(const transfer::Availability& available) {
  const std::vector<std::uint64_t> words = available.Words();
  return std::all_of(words.begin(), words.end(), [](std::uint64_t word) { return word == 0; });
}

/// The short way to a peer of this node that has everything. What it brought stays, whatever the
/// outcome.
Result<transfer::PullReport> FetchWithinNode(const transfer::NodeSource& node,
                                             const RemoteRank& rank,
                                             const WeightStore::Arriving& arriving,
                                             const PeerPullSettings& settings,
                                             const std::stop_token& stop,
                                             const transfer::ProgressCallback& on_progress) {
  const auto& memory = arriving.arena->arena().shared_memory();
  transfer::BroadcastPullOptions options{
      .self = {}, .broadcast = {}, .pull = settings.transfer, .node_deadline = kNodeDeadline};
  ROUSE_ASSIGN_OR_RETURN(const auto engine, memory->NewCopyEngine(options.pull.digest_threads));
  std::unique_ptr<memory::Broadcaster> broadcaster;
  if (settings.broadcasting != nullptr && !memory->gpu().empty()) {
    auto domain = settings.broadcasting->Domain();
    auto made = settings.broadcasting->On(memory->gpu());
    if (const Status& why = domain.ok() ? made.status() : domain.status(); !why.ok()) {
      log::Warning("no broadcast to this GPU: pulling", {{"error", why.ToString()}});
    } else {
      broadcaster = *std::move(made);
      options.self = {std::move(domain->name), memory->gpu()};
    }
  }
  return transfer::FetchFromNode(node, rank, arriving.arena->arena(), memory, *engine,
                                 broadcaster.get(), options, stop, on_progress,
                                 arriving.available.get());
}

/// "demo-1, demo-2 and 3 more", those that gave most first; empty when nobody gave anything.
std::string Names(std::vector<transfer::SourceShare> shares) {
  constexpr std::size_t kTold = 3;
  std::erase_if(shares, [](const auto& share) { return share.bytes_verified == 0; });
  std::sort(shares.begin(), shares.end(),
            [](const auto& a, const auto& b) { return a.bytes_verified > b.bytes_verified; });
  std::string names;
  for (std::size_t i = 0; i < std::min(shares.size(), kTold); ++i) {
    names += (i > 0 ? ", " : "") + shares[i].name.substr(0, shares[i].name.find(' '));
  }
  if (shares.size() > kTold) names += " and " + std::to_string(shares.size() - kTold) + " more";
  return names;
}

struct AttemptEnd {
  Status status;
  bool hopeless = false;  ///< The reason is ours: another peer would not help.
};

/// One attempt, from the first peer that opened its weights to the last rank.
class Attempt {
 public:
  Attempt(WeightStore& store, const PeerPullSettings& settings, const PeerPullHooks& hooks,
          PeerPicker& picker, const std::stop_token& stop)
      : store_(store),
        settings_(settings),
        hooks_(hooks),
        passed_on_(stop, [this] { give_up_.request_stop(); }),
        swarm_(settings, hooks, picker,
               [this](const OpenResponse& opened) { return CheckIdentity(store_, opened); }) {}

  AttemptEnd Run(const Peer& first);
  /// Whether the first peer got as far as opening its weights.
  bool opened() const { return !swarm_.first().ranks.empty(); }
  /// Whom a failed attempt leaves behind although they did nothing wrong.
  std::vector<Peer> held() const { return swarm_.held(); }

 private:
  Status CheckReach() const;
  AttemptEnd PlaceAndPull(const RemoteRank& rank, WeightStore::Arriving arriving);
  Status PullRank(const RemoteRank& rank, const WeightStore::Arriving& arriving);
  Result<transfer::PullReport> PullFromSwarm(const RemoteRank& rank,
                                             const WeightStore::Arriving& arriving,
                                             const transfer::ProgressCallback& on_progress);
  Result<transfer::PullReport> PullCopies(const RemoteRank& rank,
                                          const WeightStore::Arriving& arriving,
                                          const transfer::ProgressCallback& on_progress);

  WeightStore& store_;
  const PeerPullSettings& settings_;
  const PeerPullHooks& hooks_;
  std::stop_source give_up_;
  const std::stop_callback<std::function<void()>> passed_on_;
  Peer peer_;
  std::optional<transfer::NodeSource> node_;
  std::string origin_;
  std::uint32_t ranks_ = 0;
  bool started_ = false;
  PeerSwarm swarm_;  // last: its threads use the above
};

AttemptEnd Attempt::Run(const Peer& first) {
  peer_ = first;
  if (const Status opened = swarm_.Open(first); !opened.ok()) return {.status = opened};
  const OpenResponse& opened = swarm_.first();
  if (IsComplete(opened)) node_ = OnThisNode(first, opened, settings_.node_folder);
  if (const Status reached = CheckReach(); !reached.ok()) return {.status = reached};
  ranks_ = static_cast<std::uint32_t>(opened.ranks.size());
  const std::string origin = "pulled from " + first.pod;
  std::vector<std::pair<const RemoteRank*, WeightStore::Arriving>> missing;
  for (const RemoteRank& rank : opened.ranks) {
    if (store_.Has(rank.manifest)) continue;  // An earlier attempt has brought all of it.
    if (transfer::InGpuMemory(rank)) {
      const Status announced = store_.Announce(rank.manifest, ranks_, origin);
      if (!announced.ok()) return {.status = announced, .hopeless = true};
      missing.emplace_back(&rank, WeightStore::Arriving());
      continue;
    }
    auto place = store_.Arrive(rank.manifest, ranks_, origin, memory::HostMemory());
    if (!place.ok()) return {.status = place.status(), .hopeless = true};
    hooks_.on_placed();
    missing.emplace_back(&rank, *std::move(place));
  }
  hooks_.on_opened(first);
  for (auto& [rank, arriving] : missing) {
    origin_ = origin;
    const AttemptEnd outcome = PlaceAndPull(*rank, std::move(arriving));
    if (!outcome.status.ok()) return outcome;
    hooks_.on_progress();
  }
  hooks_.on_complete();
  return {};
}

/// What lies in a GPU's memory can be had within the node, or of a peer that makes copies, by an
/// agent that sees the GPU it is for.
Status Attempt::CheckReach() const {
  const auto& ranks = swarm_.first().ranks;
  if (std::none_of(ranks.begin(), ranks.end(), transfer::InGpuMemory)) return {};
  for (const RemoteRank& rank : ranks) {
    if (!node_ && !transfer::CanBeStaged(rank)) ROUSE_RETURN_IF_ERROR(transfer::CheckKeys(rank));
  }
  return store_.CheckGpus();
}

AttemptEnd Attempt::PlaceAndPull(const RemoteRank& rank, WeightStore::Arriving arriving) {
  if (arriving.arena == nullptr) {
    const auto memory = store_.AwaitGpu(rank.manifest.rank, give_up_.get_token());
    // No other peer's weights could lie there either.
    const bool hopeless = memory.status().code() != StatusCode::kCancelled;
    if (!memory.ok()) return {.status = memory.status(), .hopeless = hopeless};
    auto place = store_.Arrive(rank.manifest, ranks_, origin_, *memory);
    if (!place.ok()) return {.status = place.status(), .hopeless = true};
    hooks_.on_placed();
    arriving = *std::move(place);
  }
  const Status pulled = PullRank(rank, arriving);
  if (!pulled.ok()) {
    swarm_.Stop();
    return {.status = pulled};
  }
  const Status kept = store_.Arrived(rank.manifest.rank, arriving.arena, origin_);
  return {.status = kept, .hopeless = !kept.ok()};
}

Status Attempt::PullRank(const RemoteRank& rank, const WeightStore::Arriving& arriving) {
  transfer::PullProgress last;
  const auto on_progress = [&](const transfer::PullProgress& progress) {
    if (progress.counters.bytes_verified > last.counters.bytes_verified) swarm_.Progressed();
    last = progress;
    hooks_.on_verified(progress.counters.bytes_verified);
  };
  Result<transfer::PullReport> pulled = Unavailable("not tried");
  const bool has_keys = !transfer::InGpuMemory(rank);
  const bool has_other_way = has_keys || transfer::CanBeStaged(rank);
  // What an earlier attempt has brought may be being read: it must not be written again.
  if (node_ && NothingThere(*arriving.available)) {
    pulled = FetchWithinNode(*node_, rank, arriving, settings_, give_up_.get_token(), on_progress);
    if (!pulled.ok() && has_other_way && !give_up_.stop_requested()) {
      log::Warning("a peer of this node is read over the network",
                   {{"peer", node_->name}, {"error", pulled.status().ToString()}});
      node_.reset();
    }
  } else {
    node_.reset();
  }
  if (!node_ && has_other_way) {
    pulled = has_keys ? PullFromSwarm(rank, arriving, on_progress)
                      : PullCopies(rank, arriving, on_progress);
  }
  hooks_.on_transfer(pulled.status(), pulled.ok() ? pulled->counters : last.counters,
                     pulled.ok() ? pulled->seconds : last.seconds,
                     pulled.ok() ? pulled->transport : "");
  if (pulled.ok()) store_.AddTransport(pulled->transport);
  return pulled.status();
}

Result<transfer::PullReport> Attempt::PullFromSwarm(const RemoteRank& rank,
                                                    const WeightStore::Arriving& arriving,
                                                    const transfer::ProgressCallback& on_progress) {
  if (!std::exchange(started_, true)) swarm_.Start([this] { give_up_.request_stop(); });
  transfer::PullOptions options = settings_.transfer;
  options.seed = HashName(settings_.requester);
  return transfer::PullFromMany(
      rank.manifest, swarm_.sources(), *arriving.arena, *arriving.available, options,
      give_up_.get_token(),
      {.on_progress = on_progress,
       .on_put_aside = [this](auto id, const Status& why) { swarm_.PutAside(id, why); },
       .on_end =
           [&](const std::vector<transfer::SourceShare>& shares) {
             for (const transfer::SourceShare& share : shares) {
               log::Info("source of the pull", {{"peer", share.name},
                                                {"bytes", share.bytes_arrived},
                                                {"verifiedBytes", share.bytes_verified},
                                                {"damagedChunks", share.damaged}});
             }
             if (const std::string names = Names(shares); !names.empty()) {
               origin_ = "pulled from " + names;
             }
           }});
}

Result<transfer::PullReport> Attempt::PullCopies(const RemoteRank& rank,
                                                 const WeightStore::Arriving& arriving,
                                                 const transfer::ProgressCallback& on_progress) {
  ROUSE_ASSIGN_OR_RETURN(const auto client, settings_.dial(peer_));
  log::Info("weights in a peer's GPU memory are copied through host memory",
            {{"peer", peer_.pod}, {"rank", rank.manifest.rank}});
  return transfer::PullStaged(
      {.name = peer_.pod,
       .worker_address = swarm_.first().worker_address,
       .lease = swarm_.first().lease,
       .rank = rank},
      arriving.arena->context(), arriving.arena->arena(),
      [&](const StageRequest& request) {
        return Stage(*client, request, settings_.transfer.progress_deadline);
      },
      settings_.transfer, give_up_.get_token(), on_progress);
}

}  // namespace

Status PullFromPeers(WeightStore& store, const PeerPullSettings& settings,
                     const PeerPullHooks& hooks, const std::stop_token& stop) {
  PeerPicker picker(settings.picker, Clock::now());
  while (!stop.stop_requested()) {
    const auto choice = picker.Next(hooks.peers(), Clock::now(), hooks.expecting());
    if (const auto* wait = std::get_if<PeerPicker::WaitUntil>(&choice)) {
      SleepUntil(std::min(wait->at, Clock::now() + kLookAgain), stop);
      continue;
    }
    if (const auto* give_up = std::get_if<PeerPicker::GiveUp>(&choice)) {
      store.Abandon(give_up->reason);
      hooks.on_progress();
      return Unavailable(give_up->reason);
    }
    const Peer& peer = std::get<PeerPicker::Take>(choice).peer;
    Attempt attempt(store, settings, hooks, picker, stop);
    const AttemptEnd outcome = attempt.Run(peer);
    if (outcome.status.ok()) return Status();
    if (stop.stop_requested()) break;
    if (outcome.hopeless) {
      store.Abandon(outcome.status.message());
      hooks.on_progress();
      return outcome.status;
    }
    const std::vector<Peer> held = attempt.held();
    log::Warning("weights not pulled", {{"peer", peer.pod},
                                        {"address", peer.address},
                                        {"error", outcome.status.ToString()},
                                        {"otherPeers", held.size()}});
    for (const Peer& other : held) picker.OnFailed(other, outcome.status, false, Clock::now());
    if (!attempt.opened()) picker.OnFailed(peer, outcome.status, false, Clock::now());
  }
  return Status(StatusCode::kCancelled, "pull stopped");
}

}  // namespace rouse::agent
