// Points in time as API objects spell them. Pure: nobody here asks a clock.

#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace rouse::api {

using TimePoint = std::chrono::sys_time<std::chrono::microseconds>;

/// metav1.Time, whole seconds: "2026-01-02T03:04:05Z".
std::string FormatSeconds(TimePoint time);

/// metav1.MicroTime: "2026-01-02T03:04:05.000006Z". Keeps the order of what happened within a
/// second.
std::string FormatMicros(TimePoint time);

/// Reads either form, and any number of fractional digits; nullopt when it is neither, or not UTC.
std::optional<TimePoint> ParseTime(std::string_view text);

inline TimePoint FromMicros(std::int64_t us) {
  return TimePoint(std::chrono::microseconds(us));
}
inline std::int64_t ToMicros(TimePoint time) {
  return time.time_since_epoch().count();
}

}  // namespace rouse::api
