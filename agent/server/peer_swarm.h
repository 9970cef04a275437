// The peers that one attempt to pull holds open at once: a lease at each, and what each handed out
// in the hands of the pull.
//
//   PeerSwarm swarm(settings, hooks, picker, check);
//   swarm.Open(first)              // decides what is pulled: swarm.first()
//   swarm.Start();                 // others join from here on, and take the place of those that
//   fail PullFromMany(..., swarm.sources(), ...) swarm.Stop();
//
// Threads: one of its own ("peers") between Start and Stop, which uses the picker and the hooks'
// peers and on_put_aside meanwhile. PutAside and Progressed from any thread.

#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <stop_token>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "agent/server/lease.h"
#include "agent/server/peer_pull.h"
#include "agent/startup/peer_picker.h"
#include "agent/transfer/pull_sources.h"
#include "common/messages.h"
#include "common/peer_messages.h"
#include "common/result.h"

namespace rouse::agent {

class PeerSwarm {
 public:
  /// More than this make no pull faster, and each costs its source a lease and looks at its bitmap.
  static constexpr std::size_t kMaxPeers = 8;

  /// `fits` is asked of every peer's answer before it is used.
  PeerSwarm(const PeerPullSettings& settings, const PeerPullHooks& hooks, PeerPicker& picker,
            std::function<Status(const OpenResponse&)> fits)
      : settings_(settings), hooks_(hooks), picker_(picker), fits_(std::move(fits)) {}
  /// Ends leases, waiting a second for peers to answer at most.
  ~PeerSwarm();
  PeerSwarm(const PeerSwarm&) = delete;
  PeerSwarm& operator=(const PeerSwarm&) = delete;

  /// Opens the first peer: others must have the same bytes.
  Status Open(const Peer& peer);
  const OpenResponse& first() const { return first_; }

  /// `give_up` is called once, on the swarm's thread, when no peer is left and the picker gives up.
  void Start(std::function<void()> give_up);
  void Stop();

  transfer::PullSources& sources() { return sources_; }
  /// The pull goes on without this source.
  void PutAside(transfer::PullSources::Id id, const Status& why);
  /// The pull has brought something new.
  void Progressed();
  /// After Stop: whom the pull could still have used.
  std::vector<Peer> held() const;

 private:
  struct Held {
    Peer peer;
    transfer::PullSources::Id id = 0;
    std::unique_ptr<Lease> lease;
  };

  Status Join(const Peer& peer, std::chrono::milliseconds timeout);
  Status SameBytes(const OpenResponse& opened) const;
  void Run(const std::stop_token& stop, const std::function<void()>& give_up);
  void DropLost();
  void EndLease(std::unique_ptr<Lease> lease);
  void JoinMore(const std::stop_token& stop, const std::function<void()>& give_up);
  bool Holds(const Peer& peer) const;

  const PeerPullSettings& settings_;
  const PeerPullHooks& hooks_;
  PeerPicker& picker_;
  const std::function<Status(const OpenResponse&)> fits_;
  OpenResponse first_;
  transfer::PullSources sources_;
  std::mutex mutex_;
  std::condition_variable_any changed_;
  std::vector<std::pair<transfer::PullSources::Id, Status>> lost_;  // guarded, not looked at yet
  bool progressed_ = false;                                         // guarded
  std::list<Held> held_;  // after what the leases' threads use
  std::vector<std::jthread> closing_;
  std::jthread thread_;
};

}  // namespace rouse::agent
