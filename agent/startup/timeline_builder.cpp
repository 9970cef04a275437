#include "agent/startup/timeline_builder.h"

#include <algorithm>
#include <iterator>
#include <span>

namespace rouse::agent {

namespace {

using Moment = std::optional<std::int64_t>;

Timeline Partition(StartPath path, std::int64_t decided, std::span<const std::string_view> names,
                   std::span<const Moment> ends, const std::vector<Lane>& lanes) {
  Timeline timeline;
  timeline.path = path;
  timeline.decided_at_us = decided;
  timeline.total_us = std::max<std::int64_t>(0, *ends.back() - decided);
  std::int64_t at = 0;
  for (std::size_t i = 0; i < ends.size(); ++i) {
    const std::int64_t end = ends[i] ? std::clamp(*ends[i] - decided, at, timeline.total_us) : at;
    timeline.phases.push_back({std::string(names[i]), at, end});
    at = end;
  }
  for (const Lane& lane : lanes) {
    const std::int64_t start = std::max<std::int64_t>(0, lane.start_us - decided);
    timeline.lanes.push_back({lane.name, start, std::max(start, lane.end_us - decided)});
  }
  return timeline;
}

void AddLane(std::vector<Lane>* lanes, std::string_view name, const Moment& start,
             const Moment& end) {
  if (start && end && *end > *start) lanes->push_back({std::string(name), *start, *end});
}

}  // namespace

std::optional<Timeline> BuildTimeline(StartPath path, const Moments& moments,
                                      const std::vector<Lane>& lanes) {
  if (!moments.first_token_us) return std::nullopt;
  const std::int64_t decided =
      moments.decided_at_us > 0 ? moments.decided_at_us : moments.agent_started_us;
  const Moment ends[] = {
      moments.agent_started_us,  moments.engine_may_start_us, moments.engine_imported_us,
      moments.worker_started_us, moments.load_started_us,     moments.model_built_us,
      moments.model_ready_us,    moments.profiled_us,         moments.kv_cache_ready_us,
      moments.captured_us,       moments.engine_healthy_us,   moments.first_token_us};
  static_assert(std::size(ends) == std::size(kPhaseNames));
  std::vector<Lane> all;
  AddLane(&all, "PostProcess", moments.weights_loaded_us, moments.weights_processed_us);
  AddLane(&all, "Compile", moments.model_ready_us, moments.compiled_us);
  all.insert(all.end(), lanes.begin(), lanes.end());
  return Partition(path, decided, kPhaseNames, ends, all);
}

std::optional<Timeline> BuildWakeTimeline(const WakeMoments& moments,
                                          const std::vector<Lane>& lanes) {
  if (!moments.first_token_us) return std::nullopt;
  const Moment ends[] = {moments.arenas_asked_us, moments.slabs_given_us, moments.weights_given_us,
                         moments.command_done_us, moments.first_token_us};
  static_assert(std::size(ends) == std::size(kWakePhaseNames));
  return Partition(StartPath::kWake, moments.asked_us, kWakePhaseNames, ends, lanes);
}

}  // namespace rouse::agent
