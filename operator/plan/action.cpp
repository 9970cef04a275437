#include "operator/plan/action.h"

namespace rouse::plan {
namespace {

std::string Print(const CreateInstance& action) {
  return std::string("create ") + (action.role == Role::kGuard ? "guard " : "") + action.pod +
         " by " + std::string(ToString(action.path)) + " (" + action.path_reason + ")";
}

std::string Print(const ClaimGuard& action) {
  return (action.wake ? "wake " : "take ") + action.pod + (action.again ? " again" : "") + " (" +
         action.reason + ")";
}

std::string Print(const ReleaseGuard& action) {
  return "release " + action.pod + " (" + action.failed_wakes.reason + ")";
}

std::string Print(const MakeGuard& action) {
  return "make a guard of " + action.pod + " (" + action.reason + ")";
}

std::string Print(const PutToSleep& action) {
  return "put " + action.pod + " to sleep";
}

std::string Print(const SetServing& action) {
  return action.pod + (action.may_serve ? " may serve" : " may not serve");
}

std::string Print(const EnsureEndpoint& action) {
  return action.exists ? "mend the Service" : "create the Service";
}

std::string Because(Cause cause, const std::string& reason) {
  return " (" + std::string(ToString(cause)) + ": " + reason + ")";
}

std::string Print(const Leave& action) {
  return "take " + action.pod + " out of service" +
         Because(action.leaving.cause, action.leaving.reason);
}

std::string Print(const DeleteInstance& action) {
  return "delete " + action.pod + Because(action.cause, action.reason);
}

}  // namespace

std::string_view KindOf(const Action& action) {
  // In the order of the variant.
  static constexpr std::string_view kKinds[] = {
      "CreateInstance", "ClaimGuard", "ReleaseGuard",   "MakeGuard",     "PutToSleep",
      "SetServing",     "Leave",      "EnsureEndpoint", "DeleteInstance"};
  static_assert(std::size(kKinds) == std::variant_size_v<Action>);
  return kKinds[action.index()];
}

std::string ToString(const Action& action) {
  return std::visit([](const auto& a) { return Print(a); }, action);
}

}  // namespace rouse::plan
