#include "agent/server/peer_attempt.h"

#include <pthread.h>

#include <algorithm>
#include <filesystem>
#include <thread>
#include <utility>

#include "agent/server/lease.h"
#include "agent/server/rank_name.h"
#include "agent/transfer/broadcast_pull.h"
#include "agent/transfer/node_protocol.h"
#include "agent/transfer/source.h"
#include "agent/transfer/staged_pull.h"
#include "common/log.h"
#include "common/seeded.h"

namespace rouse::agent {
namespace {

/// A peer's answer may name many ranks; no pod has more GPUs.
constexpr std::size_t kMostAtOnce = 16;

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
    if (auto made = settings.broadcasting->On(memory->gpu()); made.ok()) {
      broadcaster = *std::move(made);
      options.self = {settings.broadcasting->Domain().name, memory->gpu()};
    } else {
      log::Warning("no broadcast to this GPU: pulling", {{"error", made.status().ToString()}});
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

}  // namespace

AttemptEnd Attempt::Run(const Peer& first) {
  peer_ = first;
  if (const Status opened = swarm_.Open(first); !opened.ok()) return {.status = opened};
  const OpenResponse& opened = swarm_.first();
  if (IsComplete(opened)) node_ = OnThisNode(first, opened, settings_.node_folder);
  if (const Status reached = CheckReach(); !reached.ok()) return {.status = reached};
  ranks_ = static_cast<std::uint32_t>(opened.ranks.size());
  const std::string origin = "pulled from " + first.pod;
  std::vector<Missing> missing;
  for (const RemoteRank& rank : opened.ranks) {
    if (store_.Has(rank.manifest)) continue;  // An earlier attempt has brought all of it.
    if (transfer::InGpuMemory(rank)) {
      const Status announced = store_.Announce(rank.manifest, ranks_, origin);
      if (!announced.ok()) return {.status = announced, .hopeless = true};
      missing.push_back({.rank = &rank, .arriving = {}, .origin = origin});
      continue;
    }
    auto place = store_.Arrive(rank.manifest, ranks_, origin, memory::HostMemory());
    if (!place.ok()) return {.status = place.status(), .hopeless = true};
    hooks_.on_placed();
    missing.push_back({.rank = &rank, .arriving = *std::move(place), .origin = origin});
  }
  hooks_.on_opened(first);
  const AttemptEnd end = PullAll(missing);
  if (!end.status.ok()) {
    swarm_.Stop();
    return end;
  }
  hooks_.on_complete();
  return {};
}

/// Ranks in GPU memory at once: each has a GPU of its own, and copies of one do not slow down
/// another's. In host memory one after the other: each comes from many peers.
AttemptEnd Attempt::PullAll(std::vector<Missing>& missing) {
  const auto on_gpu = [](const Missing& one) { return transfer::InGpuMemory(*one.rank); };
  if (missing.size() > 1 && missing.size() <= kMostAtOnce &&
      std::all_of(missing.begin(), missing.end(), on_gpu)) {
    return PullAtOnce(missing);
  }
  for (Missing& one : missing) {
    if (const AttemptEnd end = PlaceAndPull(one); !end.status.ok()) return end;
  }
  return {};
}

AttemptEnd Attempt::PullAtOnce(std::vector<Missing>& missing) {
  std::vector<AttemptEnd> ends(missing.size());
  {
    std::vector<std::jthread> threads;
    for (std::size_t i = 0; i < missing.size(); ++i) {
      threads.emplace_back([this, &one = missing[i], &end = ends[i]] {
        ::pthread_setname_np(::pthread_self(), "pull-rank");
        end = PlaceAndPull(one);
        // Another may be waiting for its engine.
        if (!end.status.ok()) give_up_.request_stop();
      });
    }
  }
  // What was cancelled because of another says nothing.
  const auto badness = [](const AttemptEnd& end) {
    return end.status.ok() ? 0 : end.status.code() == StatusCode::kCancelled ? 1 : 2;
  };
  return *std::ranges::max_element(ends, {}, badness);
}

/// Weights of one launch with another identity are no replacement for what engines were promised.
Status Attempt::CheckIdentity(const OpenResponse& opened) const {
  for (const RemoteRank& rank : opened.ranks) {
    if (rank.manifest.rank >= opened.ranks.size()) {
      return InvalidArgument("ranks: " + RankName(rank.manifest.rank) + " of " +
                             std::to_string(opened.ranks.size()));
    }
    ROUSE_RETURN_IF_ERROR(store_.Fits(rank.manifest, opened.ranks.size()));
    const auto known = store_.IdentityOf(rank.manifest.rank);
    if (!known) continue;
    if (const auto differences = IdentityDifferences(*known, rank.manifest.identity);
        !differences.empty()) {
      return FailedPrecondition("identity differs from that of the peer before: " +
                                differences.front());
    }
  }
  return Status();
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

AttemptEnd Attempt::PlaceAndPull(Missing& missing) {
  const WeightManifest& manifest = missing.rank->manifest;
  if (missing.arriving.arena == nullptr) {
    const auto memory = store_.AwaitGpu(manifest.rank, give_up_.get_token());
    // No other peer's weights could lie there either.
    const bool hopeless = memory.status().code() != StatusCode::kCancelled;
    if (!memory.ok()) return {.status = memory.status(), .hopeless = hopeless};
    auto place = store_.Arrive(manifest, ranks_, missing.origin, *memory);
    if (!place.ok()) return {.status = place.status(), .hopeless = true};
    hooks_.on_placed();
    missing.arriving = *std::move(place);
  }
  if (const Status pulled = PullRank(missing); !pulled.ok()) return {.status = pulled};
  const Status kept = store_.Arrived(manifest.rank, missing.arriving.arena, missing.origin);
  if (!kept.ok()) return {.status = kept, .hopeless = true};
  hooks_.on_progress();
  return {};
}

Status Attempt::PullRank(Missing& missing) {
  const RemoteRank& rank = *missing.rank;
  const WeightStore::Arriving& arriving = missing.arriving;
  transfer::PullProgress last;
  const auto on_progress = [&](const transfer::PullProgress& progress) {
    const std::uint64_t before = last.counters.bytes_verified;
    if (progress.counters.bytes_verified > before) swarm_.Progressed();
    last = progress;
    // Fewer than before when it comes another way from its first byte on.
    const std::scoped_lock lock(verified_mutex_);
    verified_ += progress.counters.bytes_verified - before;
    hooks_.on_verified(verified_);
  };
  Result<transfer::PullReport> pulled = Unavailable("not tried");
  const bool has_keys = !transfer::InGpuMemory(rank);
  const bool has_other_way = has_keys || transfer::CanBeStaged(rank);
  // What an earlier attempt has brought may be being read: it must not be written again.
  bool within = node_ && !node_fails_ && NothingThere(*arriving.available);
  if (within) {
    pulled = FetchWithinNode(*node_, rank, arriving, settings_, give_up_.get_token(), on_progress);
    if (!pulled.ok() && has_other_way && !give_up_.stop_requested()) {
      log::Warning("a peer of this node is read over the network",
                   {{"peer", node_->name}, {"error", pulled.status().ToString()}});
      node_fails_ = true;
      within = false;
    }
  }
  if (!within && has_other_way) {
    pulled =
        has_keys ? PullFromSwarm(missing, on_progress) : PullCopies(rank, arriving, on_progress);
  }
  hooks_.on_transfer(pulled.status(), pulled.ok() ? pulled->counters : last.counters,
                     pulled.ok() ? pulled->seconds : last.seconds,
                     pulled.ok() ? pulled->transport : "");
  if (pulled.ok()) store_.AddTransport(pulled->transport);
  return pulled.status();
}

Result<transfer::PullReport> Attempt::PullFromSwarm(Missing& missing,
                                                    const transfer::ProgressCallback& on_progress) {
  if (!std::exchange(started_, true)) swarm_.Start([this] { give_up_.request_stop(); });
  transfer::PullOptions options = settings_.transfer;
  options.seed = HashName(settings_.requester);
  return transfer::PullFromMany(
      missing.rank->manifest, swarm_.sources(), *missing.arriving.arena,
      *missing.arriving.available, options, give_up_.get_token(),
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
               missing.origin = "pulled from " + names;
             }
           }});
}

Result<transfer::PullReport> Attempt::PullCopies(const RemoteRank& rank,
                                                 const WeightStore::Arriving& arriving,
                                                 const transfer::ProgressCallback& on_progress) {
  const std::scoped_lock one_at_a_time(copies_mutex_);
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

}  // namespace rouse::agent
