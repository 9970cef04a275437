// The target's side of a pull: reads a peer's arena into ours and verifies every chunk.
//
// Blocks on the caller's thread, which drives UCX; digests are taken on threads of the pull's own
// ("pull-digest"), so that bytes arrive while others are verified. Returns only when no byte of the
// arena will be written any more, whatever the outcome.

#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <stop_token>
#include <string>

#include "agent/transfer/pull_actions.h"
#include "agent/transfer/registered_arena.h"
#include "agent/transfer/source.h"
#include "common/result.h"

namespace rouse::transfer {

struct PullOptions {
  std::uint64_t piece_bytes = 1u << 20;  ///< One read, at most. Smaller ones are still in the cache
                                         ///< when they are copied and digested.
  std::uint32_t window = 4;              ///< Reads in flight.
  int digest_threads = 1;
  std::uint32_t max_mismatches = 3;  ///< After this many damaged chunks the pull is given up.
  std::chrono::milliseconds progress_deadline{10'000};
  std::chrono::milliseconds piece_deadline{30'000};
};

struct PullProgress {
  PullCounters counters;
  double seconds = 0;
};

struct PullReport {
  PullCounters counters;
  double seconds = 0;     ///< From connecting to the last verified chunk.
  std::string transport;  ///< What UCX picked: "tcp/eth0", "cma/memory", "rc_mlx5/mlx5_0:1".
};

/// Called on the pulling thread, about every 100 ms and at the end; must not block.
using ProgressCallback = std::function<void(const PullProgress&)>;

/// Pulls `source` into `arena`, whose size must be the manifest's.
///
/// Errors: InvalidArgument (the description is impossible or does not fit the arena), Unavailable
/// (the peer cannot be reached or the connection broke), DeadlineExceeded (nothing arrived for too
/// long), DataLoss (chunks were wrong max_mismatches times; names the last one and the source),
/// Cancelled.
Result<PullReport> Pull(const PullSource& source, RegisteredArena& arena,
                        const PullOptions& options, std::stop_token stop,
                        const ProgressCallback& on_progress);

}  // namespace rouse::transfer
