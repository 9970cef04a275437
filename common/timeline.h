// The phases of one instance start, from the operator's decision to the first token.
//
// The phases partition [0, total]: none overlaps, none is missing. What ran beside them is a lane.
// docs/protocols.md §4 names them.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/json.h"

namespace rouse {

/// How an instance comes to its weights.
enum class StartPath { kStorage, kPeer, kWake };
std::string_view ToString(StartPath path);
inline constexpr json::EnumName<StartPath> kStartPaths[] = {
    {StartPath::kStorage, "Storage"}, {StartPath::kPeer, "Peer"}, {StartPath::kWake, "Wake"}};

/// A stretch of time, in microseconds after the decision.
struct Span {
  std::string name;
  std::int64_t start_us = 0;
  std::int64_t end_us = 0;

  bool operator==(const Span&) const = default;
};

struct Timeline {
  StartPath path = StartPath::kStorage;
  std::int64_t decided_at_us = 0;  ///< Microseconds since the Unix epoch.
  std::vector<Span> phases;        ///< In order; the first starts at 0, each where the last ended.
  std::vector<Span> lanes;
  std::int64_t total_us = 0;

  bool operator==(const Timeline&) const = default;
};

json::Json ToJson(const Timeline& timeline);

/// Strict; also refuses phases that do not partition [0, totalUs], more than 32 of them or 64
/// lanes, and names of over 64 bytes.
Result<Timeline> TimelineFromJson(const json::Json& value, const std::string& path);

}  // namespace rouse
