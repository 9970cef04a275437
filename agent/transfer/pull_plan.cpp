#include "agent/transfer/pull_plan.h"

#include <algorithm>

#include "agent/memory/chunk_digest.h"

namespace rouse::transfer {
namespace {

std::string Seconds(std::chrono::milliseconds duration) {
  return std::to_string(static_cast<double>(duration.count()) / 1000).substr(0, 5) + " s";
}

}  // namespace

PullPlan::PullPlan(PullPlanOptions options, TimePoint now)
    : options_(std::move(options)), last_arrival_(now) {
  counters_.bytes_total = options_.arena_bytes;
  counters_.chunks_total = ChunkCount(options_.arena_bytes, options_.chunk_bytes);
  chunks_.resize(counters_.chunks_total);
}

PullAction PullPlan::Next(TimePoint now) {
  if (!failed_) failed_ = MissedDeadline(now);
  if (failed_) return Fail{*failed_};
  if (counters_.chunks_verified == counters_.chunks_total) return Finish{};

  if (ready_.empty() && !again_.empty()) {
    Cut(again_.front());
    again_.pop_front();
  }
  if (ready_.empty() && next_chunk_ < chunks_.size() && unverified_ < options_.max_unverified) {
    ++unverified_;
    Cut(next_chunk_++);
  }
  if (!ready_.empty() && flight_.size() < options_.window) {
    Piece piece = ready_.front();
    ready_.pop_front();
    piece.started = now;
    // The peer owed nothing while nothing was asked of it.
    if (flight_.empty()) last_arrival_ = now;
    flight_.push_back(piece);
    return StartGet{.piece = piece.id, .offset = piece.offset, .bytes = piece.bytes};
  }
  if (flight_.empty()) return Wait{now + options_.progress_deadline};  // for digests alone
  const auto oldest =
      std::min_element(flight_.begin(), flight_.end(),
                       [](const Piece& a, const Piece& b) { return a.started < b.started; });
  return Wait{std::min(last_arrival_ + options_.progress_deadline,
                       oldest->started + options_.piece_deadline)};
}

std::optional<std::uint64_t> PullPlan::OnArrived(std::uint64_t piece, TimePoint now) {
  const auto it = std::find_if(flight_.begin(), flight_.end(),
                               [&](const Piece& known) { return known.id == piece; });
  if (it == flight_.end()) return std::nullopt;
  const Piece arrived = *it;
  flight_.erase(it);
  last_arrival_ = now;
  counters_.bytes_arrived += arrived.bytes;
  if (--chunks_[arrived.chunk].pieces_left > 0) return std::nullopt;
  return arrived.chunk;
}

void PullPlan::OnFailed(Status status) {
  if (failed_) return;
  failed_ = status.WithContext("pull from " + options_.source + " after " +
                               std::to_string(counters_.bytes_verified) + " of " +
                               std::to_string(counters_.bytes_total) + " verified bytes");
}

void PullPlan::OnDigest(std::uint64_t chunk, bool matches) {
  Chunk& state = chunks_[chunk];
  if (state.verified) return;
  const auto range = memory::ChunkRangeOf(chunk, options_.arena_bytes, options_.chunk_bytes);
  if (matches) {
    state.verified = true;
    --unverified_;
    ++counters_.chunks_verified;
    counters_.bytes_verified += range.bytes;
    return;
  }
  ++counters_.mismatches;
  if (++state.mismatches < options_.max_mismatches) {
    again_.push_back(chunk);
    return;
  }
  if (!failed_) {
    failed_ = DataLoss(
        "pull from " + options_.source + ": chunk " + std::to_string(chunk) + " (arena bytes " +
        std::to_string(range.offset) + " to " + std::to_string(range.offset + range.bytes) +
        ") arrived " + std::to_string(state.mismatches) +
        " times with another digest than the manifest's; pull from another peer, and "
        "restart that one");
  }
}

// Cuts a chunk into pieces at piece_bytes and at slab boundaries.
void PullPlan::Cut(std::uint64_t chunk) {
  const auto range = memory::ChunkRangeOf(chunk, options_.arena_bytes, options_.chunk_bytes);
  const std::uint64_t end = range.offset + range.bytes;
  for (std::uint64_t at = range.offset; at < end;) {
    std::uint64_t stop = std::min(end, at + options_.piece_bytes);
    const auto boundary =
        std::upper_bound(options_.boundaries.begin(), options_.boundaries.end(), at);
    if (boundary != options_.boundaries.end()) stop = std::min(stop, *boundary);
    ready_.push_back(
        {.id = next_piece_++, .chunk = chunk, .offset = at, .bytes = stop - at, .started = {}});
    ++chunks_[chunk].pieces_left;
    at = stop;
  }
}

std::optional<Status> PullPlan::MissedDeadline(TimePoint now) const {
  const std::string what = "pull from " + options_.source + ": ";
  const std::string so_far = " (" + std::to_string(counters_.bytes_arrived) + " of " +
                             std::to_string(counters_.bytes_total) + " bytes have arrived)";
  if (!flight_.empty() && now >= last_arrival_ + options_.progress_deadline) {
    return DeadlineExceeded(what + "nothing arrived for " + Seconds(options_.progress_deadline) +
                            so_far + "; the peer is gone or stuck");
  }
  for (const Piece& piece : flight_) {
    if (now < piece.started + options_.piece_deadline) continue;
    return DeadlineExceeded(what + "arena bytes " + std::to_string(piece.offset) + " to " +
                            std::to_string(piece.offset + piece.bytes) + " did not arrive in " +
                            Seconds(options_.piece_deadline) + so_far);
  }
  return std::nullopt;
}

}  // namespace rouse::transfer
