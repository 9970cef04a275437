// The sources of a pull, which come and go while it runs: filled by whoever opens peers, emptied by
// the pull.
//
//   PullSources sources;
//   const auto id = sources.Add({.name = ..., .ranks = ...});   // any time, any thread
//   sources.Remove(id);
//   PullFromMany(manifest, sources, arena, options, stop, hooks);        // one rank after the
//   other
//
// Threads: any.

#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "agent/transfer/peer_tier.h"
#include "common/peer_messages.h"
#include "common/result.h"

namespace rouse::transfer {

/// A peer that has handed out what is needed to read its arenas.
struct OpenedPeer {
  std::string name;  ///< For messages: "demo-0 (http://10.244.0.7:7410)".
  Tier tier = Tier::kFarther;
  std::string worker_address;
  std::vector<RemoteRank> ranks;
};

class PullSources {
 public:
  /// Names an added peer; never used twice.
  using Id = std::uint64_t;

  Id Add(OpenedPeer peer);
  /// The peer must not be read from any more. Nothing happens if it is not there.
  void Remove(Id id);

  /// Those there now. The pull looks when changes() has changed.
  std::map<Id, std::shared_ptr<const OpenedPeer>> Now() const;
  std::uint64_t changes() const;
  std::size_t count() const;

  /// Called after each change, on the thread that makes it; empty: nobody. Must be quick, and not
  /// call back.
  void OnChange(std::function<void()> call);

 private:
  mutable std::mutex mutex_;
  std::map<Id, std::shared_ptr<const OpenedPeer>> peers_;
  Id next_ = 1;
  std::uint64_t changes_ = 0;
  std::function<void()> on_change_;
};

}  // namespace rouse::transfer
