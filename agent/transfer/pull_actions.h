// The words in which a pull's planners speak: what to do next, as data, and what has been done.

#pragma once

#include <chrono>
#include <cstdint>
#include <variant>

#include "common/result.h"

namespace rouse::transfer {

using TimePoint = std::chrono::steady_clock::time_point;

/// Names a source within one plan: 0, 1, ... in the order in which they were added.
using SourceId = std::uint32_t;

/// Ask `source` for these bytes of the arena. `piece` identifies the request in OnArrived.
struct StartGet {
  std::uint64_t piece = 0;
  std::uint64_t offset = 0;
  std::uint64_t bytes = 0;
  SourceId source = 0;

  bool operator==(const StartGet&) const = default;
};
/// Read the source's availability bitmap, then call OnAvailability.
struct RefreshAvailability {
  SourceId source = 0;

  bool operator==(const RefreshAvailability&) const = default;
};
/// The source is asked for nothing more. Before calling Next again, the caller ends every read from
/// it: its chunks are asked for elsewhere, and two must not write the same bytes.
struct PutAside {
  SourceId source = 0;
  Status why;

  bool operator==(const PutAside&) const = default;
};
/// Nothing to do until an event, at most until `until`.
struct Wait {
  TimePoint until;

  bool operator==(const Wait&) const = default;
};
/// Every chunk has arrived and verified.
struct Finish {
  bool operator==(const Finish&) const = default;
};
struct Fail {
  Status status;

  bool operator==(const Fail&) const = default;
};

struct PullCounters {
  std::uint64_t bytes_total = 0;
  std::uint64_t bytes_arrived = 0;   ///< Includes what had to be pulled again.
  std::uint64_t bytes_verified = 0;  ///< Reaches bytes_total.
  std::uint64_t chunks_total = 0;
  std::uint64_t chunks_verified = 0;
  std::uint64_t mismatches = 0;

  bool operator==(const PullCounters&) const = default;
};

}  // namespace rouse::transfer
