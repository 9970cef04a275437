#include "operator/plan/action.h"

namespace rouse::plan {
namespace {

std::string Print(const CreateInstance& action) {
  return "create " + action.pod + " by " + std::string(ToString(action.path)) + " (" +
         action.path_reason + ")";
}

std::string Print(const DeleteInstance& action) {
  return "delete " + action.pod + " (" + std::string(ToString(action.cause)) + ": " +
         action.reason + ")";
}

}  // namespace

std::string_view ToString(DeleteInstance::Cause cause) {
  switch (cause) {
    case DeleteInstance::Cause::kScaleIn:
      return "ScaleIn";
    case DeleteInstance::Cause::kFailed:
      return "Failed";
    case DeleteInstance::Cause::kOutdated:
      return "Outdated";
  }
  return "ScaleIn";
}

std::string ToString(const Action& action) {
  return std::visit([](const auto& a) { return Print(a); }, action);
}

}  // namespace rouse::plan
