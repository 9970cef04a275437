// One attempt to pull weights, from the first peer that opens them to the last rank. Private to
// peer_pull.cpp.

#pragma once

#include <atomic>
#include <functional>
#include <mutex>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include "agent/server/peer_pull.h"
#include "agent/server/peer_swarm.h"
#include "agent/transfer/node_pull.h"

namespace rouse::agent {

struct AttemptEnd {
  Status status;
  bool hopeless = false;  ///< The reason is ours: another peer would not help.
};

class Attempt {
 public:
  Attempt(WeightStore& store, const PeerPullSettings& settings, const PeerPullHooks& hooks,
          PeerPicker& picker, const std::stop_token& stop)
      : store_(store),
        settings_(settings),
        hooks_(hooks),
        passed_on_(stop, [this] { give_up_.request_stop(); }),
        swarm_(settings, hooks, picker,
               [this](const OpenResponse& opened) { return CheckIdentity(opened); }) {}

  AttemptEnd Run(const Peer& first);
  /// Whether the first peer got as far as opening its weights.
  bool opened() const { return !swarm_.first().ranks.empty(); }
  /// Whom a failed attempt leaves behind although they did nothing wrong.
  std::vector<Peer> held() const { return swarm_.held(); }

 private:
  /// A rank that is not here, and where it goes: nowhere yet when that is a GPU's memory.
  struct Missing {
    const RemoteRank* rank = nullptr;
    WeightStore::Arriving arriving;
    std::string origin;
  };

  Status CheckIdentity(const OpenResponse& opened) const;
  Status CheckReach() const;
  AttemptEnd PullAll(std::vector<Missing>& missing);
  AttemptEnd PullAtOnce(std::vector<Missing>& missing);
  AttemptEnd PlaceAndPull(Missing& missing);
  Status PullRank(Missing& missing);
  Result<transfer::PullReport> PullFromSwarm(Missing& missing,
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
  std::atomic<bool> node_fails_ = false;
  std::uint32_t ranks_ = 0;
  std::mutex verified_mutex_;
  std::uint64_t verified_ = 0;  // guarded: bytes of all ranks
  std::mutex copies_mutex_;     // a lease has buffers for the copies of one rank at a time
  bool started_ = false;
  PeerSwarm swarm_;  // last: its threads use the above
};

}  // namespace rouse::agent
