// Turns the moments of one instance start, or wake, into the timeline of docs/protocols.md §4.
//
// Pure: moments are arguments, in microseconds since the Unix epoch. They come from three clocks at
// least (the operator's node, this node, and an engine that may say anything), so they are clamped
// until they are in order; the phases partition [0, total] whatever comes in.

#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "common/timeline.h"

namespace rouse::agent {

/// When each step of a start was reached. A moment that never came ends its phase where the phase
/// before it ended: the time it took then counts to the next phase that has an end.
struct Moments {
  std::int64_t decided_at_us = 0;  ///< 0: unknown, the agent's start counts as the decision.
  std::int64_t agent_started_us = 0;
  std::optional<std::int64_t> engine_may_start_us;
  std::optional<std::int64_t> engine_imported_us;
  std::optional<std::int64_t> worker_started_us;
  std::optional<std::int64_t> load_started_us;
  std::optional<std::int64_t> model_built_us;
  std::optional<std::int64_t> weights_loaded_us;
  std::optional<std::int64_t> weights_processed_us;
  std::optional<std::int64_t> model_ready_us;
  std::optional<std::int64_t> compiled_us;
  std::optional<std::int64_t> profiled_us;
  std::optional<std::int64_t> kv_cache_ready_us;
  std::optional<std::int64_t> captured_us;
  std::optional<std::int64_t> engine_healthy_us;
  std::optional<std::int64_t> first_token_us;

  bool operator==(const Moments&) const = default;
};

/// Something that ran beside the phases, in microseconds since the Unix epoch.
struct Lane {
  std::string name;
  std::int64_t start_us = 0;
  std::int64_t end_us = 0;

  bool operator==(const Lane&) const = default;
};

/// The phases' names, in order.
inline constexpr std::string_view kPhaseNames[] = {
    "Schedule", "Hydrate", "EngineStart", "Spawn",   "DeviceInit", "ModelBuild",
    "Weights",  "Profile", "KvCache",     "Capture", "ApiStart",   "FirstToken"};

/// When each step of a wake was reached; with several ranks or cores, by the last of them.
struct WakeMoments {
  std::int64_t asked_us = 0;  ///< The agent was told to wake.
  std::optional<std::int64_t> arenas_asked_us;
  std::optional<std::int64_t> slabs_given_us;
  std::optional<std::int64_t> weights_given_us;
  std::optional<std::int64_t> command_done_us;
  std::optional<std::int64_t> first_token_us;
};

inline constexpr std::string_view kWakePhaseNames[] = {"Command", "Map", "Weights", "Resume",
                                                       "Canary"};

/// The timeline of a finished wake; nullopt until there is a first token.
std::optional<Timeline> BuildWakeTimeline(const WakeMoments& moments,
                                          const std::vector<Lane>& lanes);

/// The timeline of a finished start; nullopt until there is a first token. What the engine did
/// within phases (PostProcess, Compile) comes before `lanes`.
std::optional<Timeline> BuildTimeline(StartPath path, const Moments& moments,
                                      const std::vector<Lane>& lanes);

}  // namespace rouse::agent
