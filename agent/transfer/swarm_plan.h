// What a pull from one or many sources does next. Pure: no I/O, time is an argument, randomness
// comes from a seed, the next action is data. Not thread-safe.
//
// Each target pulls the chunks it lacks from several sources at once, and others pull from it what
// it has verified (verified() is what it offers). So the bytes reach N targets in little more than
// the time of one pull, as in BitTorrent and, for weights, BlitzScale (OSDI 2025); all state is the
// target's own.
//
// Decisions, in this order:
//   1. A source that failed, missed a deadline, or sent damaged chunks too often: PutAside. Its
//      chunks in flight, and no others, are asked for again elsewhere.
//   2. Every chunk verified: Finish. Nothing to do for too long while chunks are missing: Fail.
//   3. A bitmap is due: RefreshAvailability, more often while a source has little that we want.
//   4. Room in the window and at a source that has what we want: StartGet. Nearer sources come
//      before farther ones, then those with fewer requests in flight; ChunkPicker chooses the
//      chunk.
//   5. Else Wait, until the nearest deadline at the latest.
//
// A chunk is pulled from one source, so that damage has an author, in pieces that cross no slab
// boundary of either side. When its last piece has arrived, OnArrived says so and the caller has it
// digested; only OnDigest makes it count. No more than max_unverified chunks wait for their
// digests.

#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "agent/transfer/chunk_picker.h"
#include "agent/transfer/peer_tier.h"
#include "agent/transfer/pull_actions.h"
#include "common/result.h"

namespace rouse::transfer {

struct SwarmPlanOptions {
  std::uint64_t arena_bytes = 0;
  std::uint64_t chunk_bytes = 4u << 20;
  /// Where pieces must end on our side: arena offsets at which slabs start, ascending.
  std::vector<std::uint64_t> boundaries;
  std::uint64_t piece_bytes = 4u << 20;
  std::uint32_t window = 16;          ///< Pieces in flight, of all sources together.
  std::uint32_t max_unverified = 32;  ///< Chunks asked for and not verified yet.
  std::uint32_t max_damaged = 2;      ///< A source that sent this many damaged chunks is put aside.
  std::chrono::milliseconds progress_deadline{10'000};  ///< Longest time without any arrival from a
                                                        ///< source that owes us something.
  std::chrono::milliseconds piece_deadline{30'000};     ///< Longest time for one piece or bitmap.
  /// Least that a source must send in each progress_deadline through which it always owes us
  /// something: one that trickles is put aside like one that is silent. Zero: any will do.
  std::uint64_t min_bytes_per_second = 256u << 10;
  /// Longest time with chunks missing, none of them under way and no source that has one. Zero:
  /// fail at once.
  std::chrono::milliseconds starved_deadline{10'000};
  /// Time between two looks at the bitmap of a source that has too little to keep it busy, and of
  /// one that has enough. A look that took long is not repeated before sixteen times as long, at
  /// most refresh_slowest, so that where the peer answers in software looks stay a small part of
  /// its work.
  std::chrono::microseconds refresh_hungry{1'000};
  std::chrono::microseconds refresh_sated{8'000};
  std::chrono::microseconds refresh_slowest{200'000};
  /// Decides the order of equally rare chunks; must differ between targets. None: ascending.
  std::optional<std::uint64_t> seed;
  /// Chunks that an earlier pull has verified, in the form of ChunkSet::words().
  std::vector<std::uint64_t> have;
};

struct SwarmSource {
  std::string name;  ///< For messages: "namespace/pod".
  Tier tier = Tier::kFarther;
  std::uint32_t max_in_flight = 4;        ///< Pieces asked of it at once, at most.
  bool complete = false;                  ///< Has every chunk, so that its bitmap is never read.
  std::vector<std::uint64_t> boundaries;  ///< Arena offsets at which its slabs start, ascending.
};

/// What one source contributed.
struct SourceReport {
  std::string name;
  Tier tier = Tier::kFarther;
  std::uint64_t bytes_arrived = 0;
  std::uint64_t bytes_verified = 0;
  std::uint32_t damaged = 0;  ///< Chunks.
  std::uint32_t in_flight = 0;
  Status status;  ///< Not ok once it was put aside: why.
};

using SwarmAction = std::variant<StartGet, RefreshAvailability, PutAside, Wait, Finish, Fail>;

class SwarmPlan {
 public:
  /// Requires arena_bytes, chunk_bytes, piece_bytes, window, max_unverified and max_damaged to be
  /// positive.
  explicit SwarmPlan(SwarmPlanOptions options);

  /// At any time. One that was put aside may be added again, under a new id.
  SourceId AddSource(SwarmSource source, TimePoint now);

  /// StartGet and RefreshAvailability count as in flight from here on: the caller does perform
  /// them. Every source that is given up is told in exactly one PutAside, before anything else
  /// happens.
  SwarmAction Next(TimePoint now);

  /// A piece has arrived. Returns the chunk that is now complete and waits for its digest, if any;
  /// nothing for a piece of a source that was put aside.
  std::optional<std::uint64_t> OnArrived(std::uint64_t piece, TimePoint now);
  /// The answer to RefreshAvailability: bit i of word i / 64 is set when the source offers chunk i.
  void OnAvailability(SourceId source, std::span<const std::uint64_t> words, TimePoint now);
  /// The connection to the source or a read from it failed, or it must not be used any more.
  void OnSourceFailed(SourceId source, Status why);
  /// The digest of a chunk that OnArrived returned was taken.
  void OnDigest(std::uint64_t chunk, bool matches);

  const PullCounters& counters() const { return counters_; }
  /// By SourceId.
  std::vector<SourceReport> Sources() const;
  std::uint32_t in_flight() const { return static_cast<std::uint32_t>(flight_.size()); }
  /// The chunks that may be served on.
  const ChunkSet& verified() const { return verified_; }

 private:
  struct Piece {
    std::uint64_t id = 0;
    std::uint64_t chunk = 0;
    std::uint64_t offset = 0;
    std::uint64_t bytes = 0;
    SourceId source = 0;
    TimePoint started;
  };
  enum class ChunkState : std::uint8_t { kWanted, kAsked, kArrived, kVerified };
  struct Chunk {
    std::uint32_t pieces_left = 0;
    ChunkState state = ChunkState::kWanted;
    SourceId source = 0;  // from which it was asked
  };
  struct Source {
    SwarmSource info;
    SourceReport report;
    std::deque<Piece> ready;  // cut, to be asked for
    TimePoint last_arrival;
    TimePoint window_start;  // of the rate: since when it has always owed us something
    std::uint64_t window_bytes = 0;
    std::optional<TimePoint> refreshing;  // since when
    std::optional<TimePoint> refreshed;   // when the last one that was answered was asked for
    std::chrono::microseconds refresh_took{0};
    bool aside = false;
  };

  void GiveUp(SourceId id, Status why);
  void CheckDeadlines(TimePoint now);
  void CheckRate(SourceId id, TimePoint now);
  std::optional<RefreshAvailability> DueRefresh(TimePoint now);
  TimePoint RefreshDue(const Source& source, SourceId id, TimePoint now) const;
  std::optional<StartGet> NextGet(TimePoint now);
  StartGet Ask(SourceId id, TimePoint now);
  void Cut(std::uint64_t chunk, SourceId id);
  bool Starved() const;
  Status Missing() const;
  TimePoint NextDeadline(TimePoint now) const;

  SwarmPlanOptions options_;
  PullCounters counters_;
  ChunkPicker picker_;
  ChunkSet verified_;
  std::vector<Chunk> chunks_;
  std::vector<Source> sources_;
  std::vector<Piece> flight_;       // asked for
  std::deque<SourceId> to_report_;  // put aside, not told yet
  std::vector<SourceId> order_;     // scratch
  std::uint64_t next_piece_ = 0;
  std::uint32_t unverified_ = 0;
  std::optional<TimePoint> starved_since_;
  Status last_failure_;
  std::optional<Status> failed_;
};

}  // namespace rouse::transfer
