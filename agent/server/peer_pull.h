// Pulls this instance's weights from peers, several at once, others when some fail, until all ranks
// are in place or it is time to give up.
//
// Blocks on the caller's thread. Ranks whose weights lie in GPU memory come at once, each on a
// thread of its own ("pull-rank"). The store tells engines how far it is.

#pragma once

#include <functional>
#include <memory>
#include <stop_token>
#include <string>
#include <vector>

#include "agent/memory/broadcaster.h"
#include "agent/server/weights.h"
#include "agent/startup/peer_picker.h"
#include "agent/transfer/pull.h"
#include "common/http.h"
#include "common/messages.h"

namespace rouse::agent {

struct PeerPullSettings {
  std::string launch_identity;
  std::string requester;  ///< "namespace/pod"
  /// Reaches a peer, and nobody who only has its address.
  std::function<Result<std::unique_ptr<http::Client>>(const Peer&)> dial;
  PeerPickerLimits picker;
  transfer::PullOptions transfer;
  /// The folder that all agents of this node have; empty: none. A peer whose socket is there is
  /// copied from directly, others are read over the network.
  std::string node_folder;
  /// Null: no broadcasts.
  std::shared_ptr<memory::Broadcasting> broadcasting;
};

/// Called on the caller's thread where nothing else is said, and on those of ranks.
struct PeerPullHooks {
  /// The operator's last answer, best first.
  std::function<std::vector<Peer>()> peers;
  /// Whether there may come to be others: else nobody is waited for.
  std::function<bool()> expecting = [] { return true; };
  /// The first peer has opened its weights and bytes begin to come.
  std::function<void(const Peer&)> on_opened;
  /// The slabs of a rank are there, to be filled.
  std::function<void()> on_placed;
  /// A rank is in place, or everything has changed: engines that wait should look again.
  std::function<void()> on_progress;
  /// Every rank is in place; ending the leases may take a moment longer.
  std::function<void()> on_complete;
  /// So many bytes of all ranks that this attempt pulls are in place; now and then, and never twice
  /// at the same time.
  std::function<void(std::uint64_t verified_bytes)> on_verified;
  /// One transfer of one rank has ended; `counters` are what it did, whatever `status`.
  std::function<void(const Status& status, const transfer::PullCounters& counters, double seconds,
                     const std::string& transport)>
      on_transfer;
  /// Nothing is asked of the peer any more, for now, while others go on. On the thread "peers".
  std::function<void(const Peer&, const Status&)> on_put_aside;
};

/// Ok when every rank is in place. Cancelled when stopped. Else why no peer's weights could be had:
/// the store has forgotten what had begun to arrive.
Status PullFromPeers(WeightStore& store, const PeerPullSettings& settings,
                     const PeerPullHooks& hooks, const std::stop_token& stop);

}  // namespace rouse::agent
