// What the operator remembers on a pod about decisions that take more than one run to carry out:
// JSON in annotations. Pure.

#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "common/json.h"
#include "operator/api/time.h"

namespace rouse::plan {

/// Up to the year 9999, in microseconds since the Unix epoch: what is added to a moment out of an
/// annotation must not overflow, whoever wrote it.
inline constexpr std::int64_t kLastMicros = 253'402'300'799'999'999;

/// Why an instance goes.
enum class Cause {
  kScaleIn,
  kFailed,
  kOutdated,
  kRetired,  ///< A guard that could not be woken, or one too many.
};
inline constexpr json::EnumName<Cause> kCauses[] = {{Cause::kScaleIn, "ScaleIn"},
                                                    {Cause::kFailed, "Failed"},
                                                    {Cause::kOutdated, "Outdated"},
                                                    {Cause::kRetired, "Retired"}};
std::string_view ToString(Cause cause);

/// rouse.dev/leaving: it shall go, and has been taken out of the endpoints first.
struct Leaving {
  api::TimePoint at;
  Cause cause = Cause::kScaleIn;
  std::string reason;  ///< For people.

  bool operator==(const Leaving&) const = default;
};

/// rouse.dev/failed-wakes: a guard was claimed, could not be woken, and is a guard again.
struct FailedWakes {
  int count = 0;
  api::TimePoint at;   ///< Of the last one.
  std::string reason;  ///< Of the last one, for people.

  bool operator==(const FailedWakes&) const = default;
};

json::Json ToJson(const Leaving& leaving);
json::Json ToJson(const FailedWakes& wakes);
/// Text that does not parse reads as not there: anybody who may write pods may have written it.
std::optional<Leaving> LeavingFromText(const std::string& text);
std::optional<FailedWakes> FailedWakesFromText(const std::string& text);

}  // namespace rouse::plan
