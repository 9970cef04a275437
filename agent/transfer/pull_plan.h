// What a pull does next. Pure: no I/O, time is an argument, the next action is data.
//
// Decisions, in this order:
//   1. A fatal event (connection lost, a chunk wrong too often, a deadline missed): Fail.
//   2. Every chunk verified: Finish.
//   3. A piece to ask for, and room in the window: StartGet. A chunk that arrived damaged is asked
//   for again
//      before new ones. No more than max_unverified chunks wait for their digests, so that bytes
//      are hashed while they are in the cache and a bad source is noticed early.
//   4. Else Wait, until the nearest deadline at the latest.
//
// A chunk is pulled in pieces that cross no slab boundary of either side. When its last piece has
// arrived, OnArrived says so and the caller has it digested; only OnDigest makes it count.

#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "agent/transfer/pull_actions.h"
#include "common/result.h"

namespace rouse::transfer {

struct PullPlanOptions {
  std::uint64_t arena_bytes = 0;
  std::uint64_t chunk_bytes = 4u << 20;
  /// Where pieces must end: arena offsets, ascending (slab boundaries of both sides).
  std::vector<std::uint64_t> boundaries;
  std::uint64_t piece_bytes = 4u << 20;
  std::uint32_t window = 4;           ///< Pieces in flight.
  std::uint32_t max_unverified = 16;  ///< Chunks asked for and not verified yet.
  std::uint32_t max_mismatches = 3;   ///< A chunk that is wrong this often is given up.
  std::chrono::milliseconds progress_deadline{10'000};  ///< Longest time without any arrival.
  std::chrono::milliseconds piece_deadline{30'000};     ///< Longest time for one piece.
  std::string source;                                   ///< Who sends, for messages.
};

using PullAction = std::variant<StartGet, Wait, Finish, Fail>;

class PullPlan {
 public:
  /// Requires arena_bytes, chunk_bytes, piece_bytes, window and max_unverified to be positive.
  PullPlan(PullPlanOptions options, TimePoint now);

  /// A StartGet is counted as in flight from here on: the caller does perform it.
  PullAction Next(TimePoint now);

  /// A piece has arrived. Returns the chunk that is now complete and waits for its digest, if any.
  std::optional<std::uint64_t> OnArrived(std::uint64_t piece, TimePoint now);
  /// The connection or a read failed.
  void OnFailed(Status status);
  /// The chunk's digest was taken.
  void OnDigest(std::uint64_t chunk, bool matches);

  const PullCounters& counters() const { return counters_; }
  std::uint32_t in_flight() const { return static_cast<std::uint32_t>(flight_.size()); }

 private:
  struct Piece {
    std::uint64_t id = 0;
    std::uint64_t chunk = 0;
    std::uint64_t offset = 0;
    std::uint64_t bytes = 0;
    TimePoint started;
  };
  struct Chunk {
    std::uint32_t pieces_left = 0;
    std::uint32_t mismatches = 0;
    bool verified = false;
  };

  void Cut(std::uint64_t chunk);
  std::optional<Status> MissedDeadline(TimePoint now) const;

  PullPlanOptions options_;
  PullCounters counters_;
  std::vector<Chunk> chunks_;
  std::deque<Piece> ready_;    // cut, to be asked for
  std::vector<Piece> flight_;  // asked for
  std::deque<std::uint64_t> again_;
  std::uint64_t next_chunk_ = 0;
  std::uint64_t next_piece_ = 0;
  std::uint32_t unverified_ = 0;
  TimePoint last_arrival_;
  std::optional<Status> failed_;
};

}  // namespace rouse::transfer
