// The target's side of a pull: reads peers' arenas into ours, different chunks from several at
// once, and verifies every chunk. SwarmPlan decides what is read from whom.
//
// Blocks on the caller's thread, which drives UCX; digests are taken on threads of the pull's own
// ("pull-digest"), so that bytes arrive while others are verified. Returns only when no byte of the
// arena will be written any more, whatever the outcome.

#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include "agent/transfer/availability.h"
#include "agent/transfer/pull_actions.h"
#include "agent/transfer/pull_sources.h"
#include "agent/transfer/registered_arena.h"
#include "agent/transfer/source.h"
#include "common/result.h"

namespace rouse::transfer {

struct PullOptions {
  std::uint64_t piece_bytes = 1u << 20;  ///< One read, at most. Smaller ones are still in the cache
                                         ///< when they are copied and digested.
  std::uint32_t window = 4;              ///< Reads in flight from one source.
  /// Reads in flight from all sources together; fewer than `window` counts as `window`.
  std::uint32_t total_window = 16;
  int digest_threads = 1;
  std::uint32_t max_mismatches = 3;  ///< A source that sent this many damaged chunks is put aside.
  std::chrono::milliseconds progress_deadline{10'000};
  std::chrono::milliseconds piece_deadline{30'000};
  /// Of many sources: longest time without one that has a chunk we lack.
  std::chrono::milliseconds starved_deadline{5'000};
  /// Order of equally rare chunks; must differ between targets. None: ascending.
  std::optional<std::uint64_t> seed;
};

struct PullProgress {
  PullCounters counters;
  double seconds = 0;
};

struct PullReport {
  PullCounters counters;
  double seconds = 0;     ///< From connecting to the last verified chunk.
  std::string transport;  ///< What UCX picked for the first source that sent something: "tcp/eth0",
                          ///< "cma/memory", "rc_mlx5/mlx5_0:1".
};

/// Called on the pulling thread, with the first verified chunk, then about every 100 ms, and at the
/// end; must not block.
using ProgressCallback = std::function<void(const PullProgress&)>;

/// What one source gave, however the pull ended.
struct SourceShare {
  std::string name;
  std::uint64_t bytes_arrived = 0;
  std::uint64_t bytes_verified = 0;
  std::uint32_t damaged = 0;  ///< Chunks.
};

/// Called on the pulling thread; must not block. Any may be empty.
struct PullHooks {
  ProgressCallback on_progress;
  /// Nothing is asked of the source any more in this pull, and why: DataLoss for damaged chunks.
  std::function<void(PullSources::Id, const Status&)> on_put_aside;
  /// Once, at the end.
  std::function<void(const std::vector<SourceShare>&)> on_end;
};

/// Pulls `source`, which is complete, into `arena`, whose size must be the manifest's.
///
/// Errors: InvalidArgument (the description is impossible or does not fit the arena), Unavailable
/// (the peer cannot be reached or the connection broke), DeadlineExceeded (nothing arrived for too
/// long), DataLoss (chunks were wrong max_mismatches times; names the last one and the source),
/// Cancelled.
Result<PullReport> Pull(const PullSource& source, RegisteredArena& arena,
                        const PullOptions& options, std::stop_token stop,
                        const ProgressCallback& on_progress);

/// Pulls what `manifest` describes from all that are in `sources` while it lasts, and sets each
/// verified chunk in `available`; chunks that are set already are there already. A source whose
/// manifest differs, that fails, misses a deadline, trickles, or sends damaged chunks is put aside,
/// which costs what it had been asked for and nothing else.
///
/// Errors: InvalidArgument (the manifest does not fit the arena), Cancelled; else the last
/// source's, saying which chunks are missing: no source had one of them for starved_deadline.
Result<PullReport> PullFromMany(const WeightManifest& manifest, PullSources& sources,
                                RegisteredArena& arena, Availability& available,
                                const PullOptions& options, std::stop_token stop,
                                const PullHooks& hooks);

}  // namespace rouse::transfer
