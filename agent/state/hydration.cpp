#include "agent/state/hydration.h"

#include <algorithm>
#include <tuple>

namespace rouse::agent {
namespace {

using std::chrono::milliseconds;

std::string Seconds(milliseconds time) {
  return std::to_string(std::chrono::duration_cast<std::chrono::seconds>(time).count()) + " s";
}

}  // namespace

HydrationStep NextHydrationStep(const HydrationView& view, const HydrationLimits& limits) {
  const OtherStanding* awaited = nullptr;
  for (const OtherStanding& other : view.others) {
    if (other.standing == StateStanding::kHeld) return hydration::Take{other.pod};
    const bool earlier =
        std::tie(other.decided_at_us, other.pod) < std::tie(view.decided_at_us, view.pod);
    const bool wait = other.standing == StateStanding::kCompiling ||
                      (other.standing == StateStanding::kHydrating && earlier) ||
                      (!other.standing && earlier && view.elapsed < limits.silence);
    if (awaited == nullptr && wait) awaited = &other;
  }
  if (!view.operator_answered) {
    if (view.elapsed < limits.first_answer) return hydration::Wait{};
    return hydration::GiveUp{"the operator has not said within " + Seconds(limits.first_answer) +
                             " who may have them"};
  }
  if (awaited == nullptr) {
    return hydration::GiveUp{view.others.empty() ? "no other instance runs"
                                                 : "none of " + std::to_string(view.others.size()) +
                                                       " other instances has them"};
  }
  if (view.elapsed < limits.deadline) return hydration::Wait{awaited->pod};
  return hydration::GiveUp{awaited->pod + " has not got them ready within " +
                           Seconds(limits.deadline)};
}

bool StartsWithout(std::span<const HydrationStep> steps) {
  return !steps.empty() && std::all_of(steps.begin(), steps.end(), [](const HydrationStep& step) {
    return std::holds_alternative<hydration::GiveUp>(step);
  });
}

}  // namespace rouse::agent
