// Everything the operator can do to the cluster, as data.
//
// The planner returns actions, the executor performs them, and nothing else changes the cluster. An
// action names its object by a deterministic name and says what shall be true afterwards, so doing
// it twice is the same as doing it once: a crash between two actions, or a stale cache, costs one
// more reconcile and nothing else.
//
// To add one, add a struct here: the compiler then points at the executor and at ToString.

#pragma once

#include <string>
#include <variant>

#include "common/timeline.h"
#include "operator/api/time.h"

namespace rouse::plan {

/// A pod with this name exists and will join as a serving instance.
struct CreateInstance {
  std::string pod;
  StartPath path = StartPath::kStorage;  ///< kStorage or kPeer.
  std::string path_reason;               ///< Why each better path was not taken.
  std::string launch_identity;
  std::string revision;
  api::TimePoint decided_at;

  bool operator==(const CreateInstance&) const = default;
};

/// The pod with this uid is gone. A pod of the same name with another uid is left alone.
struct DeleteInstance {
  enum class Cause { kScaleIn, kFailed, kOutdated };
  std::string pod;
  std::string uid;
  Cause cause = Cause::kScaleIn;
  std::string reason;  ///< For people.

  bool operator==(const DeleteInstance&) const = default;
};

using Action = std::variant<CreateInstance, DeleteInstance>;

/// One line for logs and the plan preview: "create demo-1 by Peer (Wake: no guards)".
std::string ToString(const Action& action);

/// "ScaleIn", "Failed", "Outdated".
std::string_view ToString(DeleteInstance::Cause cause);

}  // namespace rouse::plan
