// What came of a plan's actions. A value.

#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "common/result.h"
#include "operator/plan/planner.h"

namespace rouse::actuate {

struct Outcome {
  std::vector<std::string> errors;  ///< What could not be done; the rest was.
  std::vector<plan::Note> notes;    ///< What was done, for Events.
  /// A name turned out to be taken, or a guard not to be had, and is remembered as such: plan again
  /// at once.
  bool replan = false;
  /// Guards that could not be told to wake: seconds each, until that was known.
  std::vector<double> failed_wakes;
  /// What could not be done yet, and is no error: plan again after this long.
  std::optional<std::chrono::milliseconds> again;

  void Add(Outcome more);
  /// A write was not taken: whoever is not what was planned for any more is looked at anew soon,
  /// all else is an error.
  void Refused(const Status& refusal);
};

}  // namespace rouse::actuate
