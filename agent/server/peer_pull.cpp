#include "agent/server/peer_pull.h"

#include <condition_variable>
#include <filesystem>
#include <mutex>
#include <optional>

#include "agent/server/lease.h"
#include "agent/transfer/node_protocol.h"
#include "agent/transfer/node_pull.h"
#include "common/log.h"

namespace rouse::agent {
namespace {

using Clock = std::chrono::steady_clock;

/// The list of peers may change at any time, so no wait is longer than this.
constexpr std::chrono::milliseconds kLookAgain{100};

void SleepUntil(const std::stop_token& stop, Clock::time_point at) {
  std::mutex mutex;
  std::condition_variable_any never;
  std::unique_lock lock(mutex);
  never.wait_until(lock, stop, std::min(at, Clock::now() + kLookAgain), [] { return false; });
}

/// Weights of one launch with another identity are no replacement for what engines were promised.
Status CheckIdentity(const WeightStore& store, const OpenResponse& opened) {
  for (const RemoteRank& rank : opened.ranks) {
    if (rank.manifest.rank >= opened.ranks.size()) {
      return InvalidArgument("ranks: rank " + std::to_string(rank.manifest.rank) + " of " +
                             std::to_string(opened.ranks.size()));
    }
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

Result<transfer::PullReport> PullRank(const transfer::PullSource& source,
                                      const std::optional<transfer::NodeSource>& node,
                                      transfer::RegisteredArena& arena,
                                      const transfer::PullOptions& options, std::stop_token stop,
                                      const transfer::ProgressCallback& on_progress) {
  if (node) {
    const auto imported =
        transfer::ImportFromNode(*node, source.rank, memory::HostMemory(), kNodeDeadline);
    Status failed = imported.status();
    if (imported.ok()) {
      const auto engine = memory::HostCopyEngine(options.digest_threads);
      auto copied = transfer::CopyFromNode(*node, source.rank.manifest, **imported, arena.arena(),
                                           *engine, options, stop, on_progress);
      failed = copied.status();
      // Wrong bytes are wrong by any way.
      if (copied.ok() || failed.code() == StatusCode::kDataLoss ||
          failed.code() == StatusCode::kCancelled) {
        return copied;
      }
    }
    log::Warning("a peer of this node is read over the network",
                 {{"peer", source.name}, {"error", failed.ToString()}});
  }
  return transfer::Pull(source, arena, options, std::move(stop), on_progress);
}

struct Attempt {
  Status status;
  bool transferring = false;  ///< It got as far as reading bytes.
  bool hopeless = false;      ///< The reason is ours: another peer would not help.
};

Attempt PullFrom(const Peer& peer, WeightStore& store, const PeerPullSettings& settings,
                 const PeerPullHooks& hooks, const std::stop_token& stop) {
  // Before the lease, whose thread uses them until it is gone.
  std::stop_source give_up;
  const std::stop_callback passed_on(stop, [&] { give_up.request_stop(); });
  std::mutex mutex;
  Status lost;
  auto lease = Lease::Open(
      peer.address, {.launch_identity = settings.launch_identity, .requester = settings.requester});
  if (!lease.ok()) return {.status = lease.status()};
  const OpenResponse& opened = (*lease)->opened();
  if (const Status fits = CheckIdentity(store, opened); !fits.ok()) return {.status = fits};
  (*lease)->KeepAlive([&](const Status& why) {
    const std::scoped_lock lock(mutex);
    lost = Unavailable("lease lost: " + why.message());
    give_up.request_stop();
  });
  const auto ranks = static_cast<std::uint32_t>(opened.ranks.size());
  std::vector<std::shared_ptr<transfer::RegisteredArena>> arenas;
  for (const RemoteRank& rank : opened.ranks) {
    if (store.Has(rank.manifest)) {
      arenas.push_back(nullptr);
      continue;
    }
    auto arena = store.Arrive(rank.manifest, ranks, "pulled from " + peer.pod);
    if (!arena.ok()) return {.status = arena.status(), .hopeless = true};
    arenas.push_back(*arena);
  }
  hooks.on_opened(peer);
  for (std::size_t i = 0; i < opened.ranks.size(); ++i) {
    if (arenas[i] == nullptr) continue;  // An earlier peer has sent all of it.
    const transfer::PullSource source{.name = peer.pod + " (" + peer.address + ")",
                                      .worker_address = opened.worker_address,
                                      .rank = opened.ranks[i]};
    transfer::PullProgress last;
    const auto pulled = PullRank(source, OnThisNode(peer, opened, settings.node_folder), *arenas[i],
                                 settings.transfer, give_up.get_token(),
                                 [&](const transfer::PullProgress& progress) { last = progress; });
    Status status = pulled.status();
    if (status.code() == StatusCode::kCancelled && !stop.stop_requested()) {
      const std::scoped_lock lock(mutex);
      if (!lost.ok()) status = lost;
    }
    hooks.on_transfer(status, pulled.ok() ? pulled->counters : last.counters,
                      pulled.ok() ? pulled->seconds : last.seconds,
                      pulled.ok() ? pulled->transport : "");
    if (!status.ok()) return {.status = status, .transferring = true};
    store.AddTransport(pulled->transport);
    if (const Status kept = store.Arrived(opened.ranks[i].manifest.rank, arenas[i]); !kept.ok()) {
      return {.status = kept, .hopeless = true};
    }
    hooks.on_progress();
  }
  return {};
}

}  // namespace

Status PullFromPeers(WeightStore& store, const PeerPullSettings& settings,
                     const PeerPullHooks& hooks, const std::stop_token& stop) {
  PeerPicker picker(settings.picker, Clock::now());
  while (!stop.stop_requested()) {
    const auto choice = picker.Next(hooks.peers(), Clock::now());
    if (const auto* wait = std::get_if<PeerPicker::WaitUntil>(&choice)) {
      SleepUntil(stop, wait->at);
      continue;
    }
    if (const auto* give_up = std::get_if<PeerPicker::GiveUp>(&choice)) {
      store.Abandon(give_up->reason);
      hooks.on_progress();
      return Unavailable(give_up->reason);
    }
    const Peer& peer = std::get<PeerPicker::Take>(choice).peer;
    const Attempt attempt = PullFrom(peer, store, settings, hooks, stop);
    if (attempt.status.ok()) return Status();
    if (stop.stop_requested()) break;
    log::Warning("weights not pulled from this peer", {{"peer", peer.pod},
                                                       {"address", peer.address},
                                                       {"error", attempt.status.ToString()},
                                                       {"transferring", attempt.transferring}});
    if (attempt.hopeless) {
      store.Abandon(attempt.status.message());
      hooks.on_progress();
      return attempt.status;
    }
    picker.OnFailed(peer, attempt.status, attempt.transferring, Clock::now());
  }
  return Status(StatusCode::kCancelled, "pull stopped");
}

}  // namespace rouse::agent
