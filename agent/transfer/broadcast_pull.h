// The target's side within a node where several start together: takes part in a broadcast if its
// source has a seat for it, and pulls by itself (node_pull.h) if not, or if the broadcast fails.
//
// Not wired into the agent; broadcast_source.h says why.

#pragma once

#include <chrono>
#include <memory>
#include <stop_token>

#include "agent/memory/broadcaster.h"
#include "agent/memory/copy_engine.h"
#include "agent/transfer/node_pull.h"
#include "agent/transfer/transport_choice.h"

namespace rouse::transfer {

struct BroadcastPullOptions {
  BroadcastMember self;
  memory::BroadcastOptions broadcast;  ///< Its stop token is not used.
  PullOptions pull;
  /// Longest time until a source has said whether there is a seat, and has handed out its slabs.
  std::chrono::milliseconds node_deadline{5'000};
};

/// Asks for a seat again and again until the answer is final. FailedPrecondition, with the source's
/// reason: pull. Unavailable, DeadlineExceeded, InvalidArgument and Cancelled as everywhere.
Result<memory::BroadcastSeat> AwaitSeat(const NodeSource& source, std::uint32_t rank,
                                        const BroadcastMember& self,
                                        std::chrono::milliseconds deadline,
                                        const std::stop_token& stop);

/// Brings `rank` of `source` into `to`, every chunk verified, by a broadcast or by a pull.
/// `broadcaster` may be null: there is no NCCL here. `memory` is of the kind that `to` is made of.
/// Sets what is verified in `available`, if given: after a broadcast all at once, when all is
/// right, since a pull may have to write everything again.
///
/// The report's transport says which way it was: "broadcast/cuda:0" or "node/cuda:0"; its seconds
/// include what a failed broadcast took. Errors: those of ImportFromNode and CopyFromNode; a
/// broadcast's own are logged and end in a pull.
Result<PullReport> FetchFromNode(const NodeSource& source, const RemoteRank& rank,
                                 memory::Arena& to, std::shared_ptr<const memory::Memory> memory,
                                 memory::CopyEngine& engine, memory::Broadcaster* broadcaster,
                                 const BroadcastPullOptions& options, const std::stop_token& stop,
                                 const ProgressCallback& on_progress,
                                 Availability* available = nullptr);

}  // namespace rouse::transfer
