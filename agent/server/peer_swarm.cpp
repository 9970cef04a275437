#include "agent/server/peer_swarm.h"

#include <pthread.h>

#include <algorithm>

#include "agent/server/rank_name.h"
#include "agent/transfer/source.h"
#include "common/log.h"

namespace rouse::agent {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

/// The operator may name other peers at any time.
constexpr milliseconds kSwarmTick{100};
constexpr milliseconds kFirstOpen{10'000};
/// Shorter for those that join: the pull runs without them.
constexpr milliseconds kJoin{3'000};

transfer::Tier TierOf(Distance distance) {
  switch (distance) {
    case Distance::kNode:
      return transfer::Tier::kSameNode;
    case Distance::kRack:
      return transfer::Tier::kSameRack;
    case Distance::kZone:
      return transfer::Tier::kSameZone;
    case Distance::kFarther:
      return transfer::Tier::kFarther;
  }
  return transfer::Tier::kFarther;
}

}  // namespace

PeerSwarm::~PeerSwarm() {
  Stop();
  for (Held& held : held_) EndLease(std::move(held.lease));
}

// On a thread of its own: it may wait seconds for a peer that does not answer.
void PeerSwarm::EndLease(std::unique_ptr<Lease> lease) {
  closing_.emplace_back([ended = std::move(lease)]() mutable { ended.reset(); });
}

Status PeerSwarm::Open(const Peer& peer) {
  return Join(peer, kFirstOpen);
}

Status PeerSwarm::Join(const Peer& peer, milliseconds timeout) {
  ROUSE_ASSIGN_OR_RETURN(auto client, settings_.dial(peer));
  ROUSE_ASSIGN_OR_RETURN(auto lease, Lease::Open(std::move(client),
                                                 {.launch_identity = settings_.launch_identity,
                                                  .requester = settings_.requester,
                                                  .partial = true},
                                                 timeout));
  const OpenResponse& opened = lease->opened();
  const std::string name = peer.pod + " (" + peer.address + ")";
  for (const RemoteRank& rank : opened.ranks) {
    ROUSE_RETURN_IF_ERROR(transfer::CheckSource(name, opened.worker_address, rank));
  }
  ROUSE_RETURN_IF_ERROR(fits_(opened));
  if (first_.ranks.empty()) {
    first_ = opened;
  } else {
    ROUSE_RETURN_IF_ERROR(SameBytes(opened));
  }
  const auto id = sources_.Add({.name = name,
                                .tier = TierOf(peer.distance),
                                .worker_address = opened.worker_address,
                                .ranks = opened.ranks});
  held_.push_back({.peer = peer, .id = id, .lease = std::move(lease)});
  held_.back().lease->KeepAlive(
      [this, id](const Status& why) { PutAside(id, Unavailable("lease lost: " + why.message())); });
  return Status();
}

// Not FailedPrecondition: should the first one vanish, this peer's bytes are as good as any.
Status PeerSwarm::SameBytes(const OpenResponse& opened) const {
  if (opened.ranks.size() != first_.ranks.size()) {
    return Unavailable("it has " + std::to_string(opened.ranks.size()) + " ranks, what is pulled " +
                       std::to_string(first_.ranks.size()));
  }
  for (const RemoteRank& rank : opened.ranks) {
    const auto same = std::find_if(
        first_.ranks.begin(), first_.ranks.end(),
        [&](const RemoteRank& known) { return known.manifest.rank == rank.manifest.rank; });
    if (same == first_.ranks.end() || same->manifest != rank.manifest) {
      return Unavailable("its weights of " + RankName(rank.manifest.rank) +
                         " are other bytes than those that are pulled");
    }
  }
  return Status();
}

void PeerSwarm::Start(std::function<void()> give_up) {
  thread_ = std::jthread([this, give_up = std::move(give_up)](const std::stop_token& stop) {
    pthread_setname_np(pthread_self(), "peers");
    Run(stop, give_up);
  });
}

void PeerSwarm::Stop() {
  if (!thread_.joinable()) return;
  thread_.request_stop();
  thread_.join();
  DropLost();
}

void PeerSwarm::PutAside(transfer::PullSources::Id id, const Status& why) {
  const std::scoped_lock lock(mutex_);
  lost_.emplace_back(id, why);
  changed_.notify_all();
}

void PeerSwarm::Progressed() {
  const std::scoped_lock lock(mutex_);
  progressed_ = true;
}

std::vector<Peer> PeerSwarm::held() const {
  std::vector<Peer> peers;
  for (const Held& held : held_) peers.push_back(held.peer);
  return peers;
}

bool PeerSwarm::Holds(const Peer& peer) const {
  return std::any_of(held_.begin(), held_.end(),
                     [&](const Held& held) { return held.peer.address == peer.address; });
}

void PeerSwarm::Run(const std::stop_token& stop, const std::function<void()>& give_up) {
  while (!stop.stop_requested()) {
    DropLost();
    JoinMore(stop, give_up);
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, stop, kSwarmTick, [&] { return !lost_.empty(); });
  }
}

void PeerSwarm::DropLost() {
  std::vector<std::pair<transfer::PullSources::Id, Status>> lost;
  bool progressed = false;
  {
    const std::scoped_lock lock(mutex_);
    lost.swap(lost_);
    progressed = std::exchange(progressed_, false);
  }
  if (progressed) picker_.OnProgress(Clock::now());
  for (const auto& [id, why] : lost) {
    const auto held = std::find_if(held_.begin(), held_.end(),
                                   [&, wanted = id](const Held& h) { return h.id == wanted; });
    if (held == held_.end()) continue;  // told before, by lease and pull
    sources_.Remove(id);
    hooks_.on_put_aside(held->peer, why);
    picker_.OnFailed(held->peer, why, true, Clock::now());
    EndLease(std::move(held->lease));
    held_.erase(held);
  }
}

void PeerSwarm::JoinMore(const std::stop_token& stop, const std::function<void()>& give_up) {
  while (held_.size() < kMaxPeers && !stop.stop_requested()) {
    std::vector<Peer> others = hooks_.peers();
    std::erase_if(others, [&](const Peer& peer) { return Holds(peer); });
    const auto choice = picker_.Next(others, Clock::now(), hooks_.expecting());
    const auto* take = std::get_if<PeerPicker::Take>(&choice);
    if (take == nullptr) {
      if (held_.empty() && std::holds_alternative<PeerPicker::GiveUp>(choice)) give_up();
      return;
    }
    const Status joined = Join(take->peer, kJoin);
    if (joined.ok()) {
      log::Info("peer joins the pull", {{"peer", take->peer.pod},
                                        {"address", take->peer.address},
                                        {"partial", take->peer.partial}});
      continue;
    }
    log::Debug("peer does not join the pull",
               {{"peer", take->peer.pod}, {"error", joined.ToString()}});
    picker_.OnFailed(take->peer, joined, false, Clock::now());
  }
}

}  // namespace rouse::agent
