#include "agent/transfer/swarm_plan.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "agent/memory/chunk_digest.h"

namespace rouse::transfer {

using memory::ChunkRangeOf;

SwarmPlan::SwarmPlan(SwarmPlanOptions options)
    : options_(std::move(options)),
      picker_(ChunkCount(options_.arena_bytes, options_.chunk_bytes), options_.seed),
      verified_(ChunkCount(options_.arena_bytes, options_.chunk_bytes)),
      chunks_(verified_.size()) {
  counters_.bytes_total = options_.arena_bytes;
  counters_.chunks_total = chunks_.size();
  verified_.Merge(options_.have, [&](std::uint64_t chunk) {
    chunks_[chunk].state = ChunkState::kVerified;
    picker_.Drop(chunk);
    ++counters_.chunks_verified;
    counters_.bytes_verified +=
        ChunkRangeOf(chunk, options_.arena_bytes, options_.chunk_bytes).bytes;
  });
}

SourceId SwarmPlan::AddSource(SwarmSource source, TimePoint now) {
  const SourceId id = picker_.AddSource(source.complete);
  sources_.push_back({.info = std::move(source), .last_arrival = now});
  Source& added = sources_.back();
  added.info.max_in_flight = std::max<std::uint32_t>(added.info.max_in_flight, 1);
  added.report.name = added.info.name;
  added.report.tier = added.info.tier;
  return id;
}

SwarmAction SwarmPlan::Next(TimePoint now) {
  CheckDeadlines(now);
  if (!to_report_.empty()) {
    const SourceId id = to_report_.front();
    to_report_.pop_front();
    return PutAside{.source = id, .why = sources_[id].report.status};
  }
  if (failed_) return Fail{*failed_};
  if (counters_.chunks_verified == counters_.chunks_total) return Finish{};
  if (const auto refresh = DueRefresh(now)) return *refresh;
  if (const auto get = NextGet(now)) return *get;

  if (!Starved()) {
    starved_since_.reset();
  } else if (!starved_since_) {
    starved_since_ = now;
  }
  if (starved_since_ && now >= *starved_since_ + options_.starved_deadline) {
    failed_ = Missing();
    return Fail{*failed_};
  }
  return Wait{NextDeadline(now)};
}

std::optional<std::uint64_t> SwarmPlan::OnArrived(std::uint64_t piece, TimePoint now) {
  const auto it = std::find_if(flight_.begin(), flight_.end(),
                               [&](const Piece& known) { return known.id == piece; });
  if (it == flight_.end()) return std::nullopt;
  const Piece arrived = *it;
  flight_.erase(it);
  Source& source = sources_[arrived.source];
  --source.report.in_flight;
  source.report.bytes_arrived += arrived.bytes;
  source.last_arrival = now;
  source.window_bytes += arrived.bytes;
  counters_.bytes_arrived += arrived.bytes;
  Chunk& chunk = chunks_[arrived.chunk];
  if (--chunk.pieces_left > 0) return std::nullopt;
  chunk.state = ChunkState::kArrived;
  return arrived.chunk;
}

void SwarmPlan::OnAvailability(SourceId id, std::span<const std::uint64_t> words, TimePoint now) {
  Source& source = sources_[id];
  if (source.aside) return;
  // From when it was asked for, so that looks at several sources stay together in time: one
  // wake-up.
  source.refreshed = source.refreshing.value_or(now);
  source.refresh_took =
      std::chrono::duration_cast<std::chrono::microseconds>(now - *source.refreshed);
  source.refreshing.reset();
  picker_.Offer(id, words);
}

void SwarmPlan::OnSourceFailed(SourceId id, Status why) {
  GiveUp(id, std::move(why));
}

void SwarmPlan::OnDigest(std::uint64_t number, bool matches) {
  Chunk& chunk = chunks_[number];
  if (chunk.state != ChunkState::kArrived) return;
  const auto range = ChunkRangeOf(number, options_.arena_bytes, options_.chunk_bytes);
  Source& source = sources_[chunk.source];
  --unverified_;
  if (matches) {
    chunk.state = ChunkState::kVerified;
    verified_.Set(number);
    ++counters_.chunks_verified;
    counters_.bytes_verified += range.bytes;
    source.report.bytes_verified += range.bytes;
    return;
  }
  ++counters_.mismatches;
  ++source.report.damaged;
  chunk.state = ChunkState::kWanted;
  picker_.ReturnDamaged(number, chunk.source);
  if (source.report.damaged < options_.max_damaged) return;
  GiveUp(chunk.source,
         DataLoss("bytes arrived " + std::to_string(source.report.damaged) +
                  " times with another digest than the manifest's, the last of "
                  "chunk " +
                  std::to_string(number) + " (arena bytes " + std::to_string(range.offset) +
                  " to " + std::to_string(range.offset + range.bytes) + "); restart that peer"));
}

std::vector<SourceReport> SwarmPlan::Sources() const {
  std::vector<SourceReport> reports;
  for (const Source& source : sources_) reports.push_back(source.report);
  return reports;
}

// The source is asked for nothing more; what it owes is wanted again.
void SwarmPlan::GiveUp(SourceId id, Status why) {
  Source& source = sources_[id];
  if (source.aside) return;
  source.aside = true;
  source.report.status = why.WithContext("pull from " + source.info.name);
  source.report.in_flight = 0;
  last_failure_ = source.report.status;
  picker_.RemoveSource(id);
  const auto abandon = [&](const Piece& piece) {
    Chunk& chunk = chunks_[piece.chunk];
    if (chunk.state != ChunkState::kAsked) return;  // by another of its pieces
    chunk = {};
    --unverified_;
    picker_.Return(piece.chunk);
  };
  for (const Piece& piece : flight_) {
    if (piece.source == id) abandon(piece);
  }
  std::for_each(source.ready.begin(), source.ready.end(), abandon);
  source.ready.clear();
  std::erase_if(flight_, [&](const Piece& piece) { return piece.source == id; });
  to_report_.push_back(id);
}

std::optional<StartGet> SwarmPlan::NextGet(TimePoint now) {
  if (flight_.size() >= options_.window) return std::nullopt;
  // Sources with room, best first.
  order_.clear();
  for (SourceId id = 0; id < sources_.size(); ++id) {
    const Source& source = sources_[id];
    if (source.aside || source.report.in_flight >= source.info.max_in_flight) continue;
    if (!source.ready.empty()) return Ask(id, now);  // chunks that were begun come first
    if (picker_.Offers(id) > 0) order_.push_back(id);
  }
  if (order_.empty() || unverified_ >= options_.max_unverified) return std::nullopt;
  std::sort(order_.begin(), order_.end(), [&](SourceId a, SourceId b) {
    const auto key = [&](SourceId id) {
      const SourceReport& report = sources_[id].report;
      return std::tuple(report.tier, report.in_flight, report.bytes_arrived, id);
    };
    return key(a) < key(b);
  });
  for (const bool urgent_only : {true, false}) {
    if (urgent_only && !picker_.AnyUrgent()) continue;
    for (const SourceId id : order_) {
      const auto chunk = picker_.Take(id, urgent_only);
      if (!chunk) continue;
      ++unverified_;
      chunks_[*chunk] = {.pieces_left = 0, .state = ChunkState::kAsked, .source = id};
      Cut(*chunk, id);
      return Ask(id, now);
    }
  }
  return std::nullopt;
}

// Asks for the source's next piece.
StartGet SwarmPlan::Ask(SourceId id, TimePoint now) {
  Source& source = sources_[id];
  Piece piece = source.ready.front();
  source.ready.pop_front();
  piece.started = now;
  // The source owed nothing while nothing was asked of it.
  if (source.report.in_flight == 0) {
    source.last_arrival = now;
    source.window_start = now;
    source.window_bytes = 0;
  }
  ++source.report.in_flight;
  flight_.push_back(piece);
  return {.piece = piece.id, .offset = piece.offset, .bytes = piece.bytes, .source = id};
}

// Cuts a chunk into pieces at piece_bytes and at slab boundaries of both sides.
void SwarmPlan::Cut(std::uint64_t number, SourceId id) {
  const auto range = ChunkRangeOf(number, options_.arena_bytes, options_.chunk_bytes);
  const std::uint64_t end = range.offset + range.bytes;
  Source& source = sources_[id];
  for (std::uint64_t at = range.offset; at < end;) {
    std::uint64_t stop = std::min(end, at + options_.piece_bytes);
    for (const auto* boundaries : {&options_.boundaries, &source.info.boundaries}) {
      const auto boundary = std::upper_bound(boundaries->begin(), boundaries->end(), at);
      if (boundary != boundaries->end()) stop = std::min(stop, *boundary);
    }
    source.ready.push_back({.id = next_piece_++,
                            .chunk = number,
                            .offset = at,
                            .bytes = stop - at,
                            .source = id,
                            .started = {}});
    ++chunks_[number].pieces_left;
    at = stop;
  }
}

}  // namespace rouse::transfer
