// The source's side of broadcasts within a node: gives out seats, and sends when a batch is full.
//
//   BroadcastSource source(arena, 0, *broadcasting->On(gpu), {.self = {domain, gpu}});
//   NodeShare::Start(folder, name, slabs, {}, [&](const NodeJoin& join) {
//     ... the lease lives? ...
//     return source.Join(join);
//   });
//
// By what was measured (transport_choice.h) a broadcast ends before pulls only with five targets or
// more on one node, with most of each GPU full of weights; BroadcastRoster says who waits for that.

#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "agent/memory/broadcaster.h"
#include "agent/transfer/broadcast_roster.h"
#include "agent/transfer/node_protocol.h"
#include "common/result.h"

namespace rouse::transfer {

struct BroadcastSourceOptions {
  BroadcastMember self;
  RosterOptions roster;
  memory::BroadcastOptions broadcast;  ///< Its stop token is not used.
};

class BroadcastSource {
 public:
  /// Offers `rank`, whose bytes do not change any more. Without a broadcaster everyone pulls.
  BroadcastSource(std::shared_ptr<const memory::Arena> arena, std::uint32_t rank,
                  std::unique_ptr<memory::Broadcaster> broadcaster,
                  const BroadcastSourceOptions& options);
  /// Stops the broadcast under way, if there is one.
  ~BroadcastSource();

  /// Answers at once. Any thread. NotFound for another rank. The caller has checked the lease.
  Result<NodeJoinAnswer> Join(const NodeJoin& join);

 private:
  void Run(int ranks, std::stop_token stop);

  const std::shared_ptr<const memory::Arena> arena_;
  const std::uint32_t rank_;
  const std::unique_ptr<memory::Broadcaster> broadcaster_;  // the thread's
  const BroadcastSourceOptions options_;
  std::mutex mutex_;
  BroadcastRoster roster_;
  std::uint64_t round_ = 0;
  std::optional<memory::BroadcastId> id_;  // of the round under way
  std::jthread thread_;                    // last: it uses all of the above
};

}  // namespace rouse::transfer
