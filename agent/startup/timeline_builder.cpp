#include "agent/startup/timeline_builder.h"

#include <algorithm>

namespace rouse::agent {

std::optional<Timeline> BuildTimeline(StartPath path, const Moments& moments,
                                      const std::vector<Lane>& lanes) {
  if (!moments.first_token_us) return std::nullopt;
  const std::int64_t decided =
      moments.decided_at_us > 0 ? moments.decided_at_us : moments.agent_started_us;
  Timeline timeline;
  timeline.path = path;
  timeline.decided_at_us = decided;
  timeline.total_us = std::max<std::int64_t>(0, *moments.first_token_us - decided);

  const std::optional<std::int64_t> ends[] = {
      moments.agent_started_us, moments.engine_may_start_us, moments.engine_imported_us,
      moments.load_started_us,  moments.weights_ready_us,    moments.engine_healthy_us,
      moments.first_token_us};
  static_assert(std::size(ends) == std::size(kPhaseNames));
  std::int64_t at = 0;
  for (std::size_t i = 0; i < std::size(ends); ++i) {
    const std::int64_t end = ends[i] ? std::clamp(*ends[i] - decided, at, timeline.total_us) : at;
    timeline.phases.push_back({std::string(kPhaseNames[i]), at, end});
    at = end;
  }
  for (const Lane& lane : lanes) {
    const std::int64_t start = std::max<std::int64_t>(0, lane.start_us - decided);
    timeline.lanes.push_back({lane.name, start, std::max(start, lane.end_us - decided)});
  }
  return timeline;
}

}  // namespace rouse::agent
