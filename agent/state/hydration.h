// Whether an instance fetches a bundle, waits for one, or starts without. Pure; time is an
// argument.
//
// Of instances that start together one compiles and the others wait for it: an instance waits for
// those whose engine is at it, and for those that are looking themselves and were decided before
// it. So no two wait for each other, as long as who is said to compile does start its engine:
// an instance is said to for no class of caches while it waits for another class's. One that was
// decided before and cannot be asked yet is waited for a moment.

#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "agent/state/state_messages.h"

namespace rouse::agent {

/// What one other instance has answered, if it has.
struct OtherStanding {
  std::string pod;
  std::optional<StateStanding> standing;  ///< None: it cannot be asked, yet or any more.
  std::int64_t decided_at_us = 0;
};

/// What is known at one moment.
struct HydrationView {
  std::string pod;  ///< Its own name, and when its own start was decided.
  std::int64_t decided_at_us = 0;
  bool operator_answered = false;  ///< Who the others are is known.
  std::vector<OtherStanding> others;
  std::chrono::milliseconds elapsed{0};  ///< Since it began to look.
};

struct HydrationLimits {
  /// After which the engine starts without.
  std::chrono::milliseconds deadline{120'000};
  /// How long the operator's first answer is waited for.
  std::chrono::milliseconds first_answer{5'000};
  /// How long an earlier instance that cannot be asked is waited for.
  std::chrono::milliseconds silence{3'000};
};

namespace hydration {
struct Take {
  std::string pod;
};
struct Wait {
  std::string pod;  ///< The one that is waited for; empty: the operator.
};
struct GiveUp {
  std::string reason;
};
}  // namespace hydration
using HydrationStep = std::variant<hydration::Take, hydration::Wait, hydration::GiveUp>;

/// Others are taken in the order in which they are given.
HydrationStep NextHydrationStep(const HydrationView& view, const HydrationLimits& limits);

/// Whether the engine starts without what is missing: `steps` of all classes that are, of one
/// moment. False for none.
bool StartsWithout(std::span<const HydrationStep> steps);

}  // namespace rouse::agent
