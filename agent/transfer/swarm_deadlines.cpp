// The part of SwarmPlan that looks at the clock.

#include <algorithm>

#include "agent/memory/chunk_digest.h"
#include "agent/transfer/swarm_plan.h"

namespace rouse::transfer {
namespace {

std::string Seconds(std::chrono::milliseconds duration) {
  return std::to_string(static_cast<double>(duration.count()) / 1000).substr(0, 5) + " s";
}

}  // namespace

void SwarmPlan::CheckDeadlines(TimePoint now) {
  const auto so_far = [&] {
    return " (" + std::to_string(counters_.bytes_arrived) + " of " +
           std::to_string(counters_.bytes_total) + " bytes have arrived)";
  };
  for (SourceId id = 0; id < sources_.size(); ++id) {
    const Source& source = sources_[id];
    if (source.aside) continue;
    if (source.report.in_flight > 0 && now >= source.last_arrival + options_.progress_deadline) {
      GiveUp(id, DeadlineExceeded("nothing arrived for " + Seconds(options_.progress_deadline) +
                                  so_far() + "; the peer is gone or stuck"));
    } else if (source.refreshing && now >= *source.refreshing + options_.piece_deadline) {
      GiveUp(id, DeadlineExceeded("its availability did not arrive in " +
                                  Seconds(options_.piece_deadline) + so_far()));
    } else {
      CheckRate(id, now);
    }
  }
  for (std::size_t i = 0; i < flight_.size();) {
    const Piece piece = flight_[i++];
    if (now < piece.started + options_.piece_deadline) continue;
    GiveUp(piece.source,
           DeadlineExceeded("arena bytes " + std::to_string(piece.offset) + " to " +
                            std::to_string(piece.offset + piece.bytes) + " did not arrive in " +
                            Seconds(options_.piece_deadline) + so_far()));
    i = 0;  // its other pieces are gone from the list
  }
}

// Each window is one progress_deadline long; Ask begins one whenever nothing was owed.
void SwarmPlan::CheckRate(SourceId id, TimePoint now) {
  Source& source = sources_[id];
  if (source.report.in_flight == 0 || now < source.window_start + options_.progress_deadline) {
    return;
  }
  const double seconds = std::chrono::duration<double>(now - source.window_start).count();
  const auto least =
      static_cast<std::uint64_t>(static_cast<double>(options_.min_bytes_per_second) * seconds);
  if (source.window_bytes < least) {
    GiveUp(id, DeadlineExceeded("sent only " + std::to_string(source.window_bytes) + " bytes in " +
                                std::to_string(seconds).substr(0, 5) + " s, fewer than " +
                                std::to_string(options_.min_bytes_per_second) + " a second"));
    return;
  }
  source.window_start = now;
  source.window_bytes = 0;
}

std::optional<RefreshAvailability> SwarmPlan::DueRefresh(TimePoint now) {
  for (SourceId id = 0; id < sources_.size(); ++id) {
    Source& source = sources_[id];
    if (source.aside || source.info.complete || source.refreshing) continue;
    if (RefreshDue(source, id, now) > now) continue;
    source.refreshing = now;
    return RefreshAvailability{id};
  }
  return std::nullopt;
}

TimePoint SwarmPlan::RefreshDue(const Source& source, SourceId id, TimePoint now) const {
  if (!source.refreshed) return now;
  const bool hungry = picker_.Offers(id) < source.info.max_in_flight;
  const auto pause = hungry ? options_.refresh_hungry : options_.refresh_sated;
  return *source.refreshed +
         std::max(pause, std::min(16 * source.refresh_took, options_.refresh_slowest));
}

// Whether nothing is under way that could bring a missing chunk.
bool SwarmPlan::Starved() const {
  return flight_.empty() && unverified_ == 0 &&
         std::none_of(sources_.begin(), sources_.end(), [](const Source& source) {
           return !source.aside && source.refreshing && !source.refreshed;
         });
}

// Which chunks are missing, and what became of the sources.
Status SwarmPlan::Missing() const {
  constexpr std::size_t kRanges = 4;
  constexpr std::size_t kSources = 4;
  std::string ranges;
  std::size_t count = 0;
  for (std::uint64_t i = 0; i < chunks_.size(); ++i) {
    if (verified_.Test(i) || (i > 0 && !verified_.Test(i - 1))) continue;
    std::uint64_t last = i;
    while (last + 1 < chunks_.size() && !verified_.Test(last + 1)) ++last;
    if (++count > kRanges) continue;
    ranges += (count > 1 ? ", " : "") + std::to_string(i);
    if (last > i) ranges += " to " + std::to_string(last);
  }
  if (count > kRanges) ranges += " and more";
  std::string message = std::to_string(counters_.chunks_total - counters_.chunks_verified) +
                        " of " + std::to_string(counters_.chunks_total) + " chunks are missing (" +
                        ranges + "; " + std::to_string(counters_.bytes_verified) + " of " +
                        std::to_string(counters_.bytes_total) +
                        " bytes are verified) and no source has one of them";
  if (options_.starved_deadline.count() > 0) {
    message += " since " + Seconds(options_.starved_deadline);
  }
  std::size_t told = 0;
  for (auto source = sources_.rbegin(); source != sources_.rend(); ++source) {
    if (!source->aside || told++ >= kSources) continue;
    message += "; " + source->report.status.message();
  }
  if (told > kSources) message += "; " + std::to_string(told - kSources) + " more were put aside";
  const auto code = last_failure_.ok() ? StatusCode::kUnavailable : last_failure_.code();
  return {code, std::move(message)};
}

TimePoint SwarmPlan::NextDeadline(TimePoint now) const {
  // Bounded, so that a caller who waits for digests alone still wakes now and then.
  TimePoint until = now + options_.progress_deadline;
  for (SourceId id = 0; id < sources_.size(); ++id) {
    const Source& source = sources_[id];
    if (source.aside) continue;
    if (source.report.in_flight > 0) {
      until = std::min(until, source.last_arrival + options_.progress_deadline);
      if (options_.min_bytes_per_second > 0) {
        until = std::min(until, source.window_start + options_.progress_deadline);
      }
    }
    if (source.refreshing) {
      until = std::min(until, *source.refreshing + options_.piece_deadline);
    } else if (!source.info.complete) {
      until = std::min<TimePoint>(until, RefreshDue(source, id, now));
    }
  }
  for (const Piece& piece : flight_) {
    until = std::min(until, piece.started + options_.piece_deadline);
  }
  if (starved_since_) until = std::min(until, *starved_since_ + options_.starved_deadline);
  return until;
}

}  // namespace rouse::transfer
