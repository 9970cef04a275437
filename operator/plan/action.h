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
#include <string_view>
#include <variant>
#include <vector>

#include "common/messages.h"
#include "common/role.h"
#include "common/timeline.h"
#include "operator/api/time.h"
#include "operator/plan/marks.h"

namespace rouse::plan {

/// A pod with this name exists and will join as a serving instance, or as a guard.
struct CreateInstance {
  std::string pod;
  Role role = Role::kActive;
  StartPath path = StartPath::kStorage;  ///< kStorage or kPeer.
  std::string path_reason;               ///< Why each better path was not taken.
  bool begins_without = false;           ///< A guard that gets no weights before it is woken.
  std::string launch_identity;
  std::string revision;
  api::TimePoint decided_at;
  /// Nodes that have its weights: it shall be near them, if that can be.
  std::vector<std::string> near;

  bool operator==(const CreateInstance&) const = default;
};

/// This guard is a replica from now on, and no other claim of it succeeds. When `wake`, its agent
/// has been told; if it could not be, it stays a guard that could not be woken.
struct ClaimGuard {
  std::string pod;
  std::string uid;
  std::string resource_version;  ///< Of the pod as it was seen.
  std::string address;           ///< Its agent's.
  bool wake = false;             ///< It sleeps, or may be about to.
  bool again = false;            ///< It was claimed before: it is only told.
  std::vector<Peer> peers;       ///< Whose weights it wakes with, best first.
  std::string reason;            ///< Why it and no other, for people.
  api::TimePoint decided_at;
  FailedWakes failed_wakes;  ///< What it already has.

  bool operator==(const ClaimGuard&) const = default;
};

/// A claimed guard is a guard again: it did not wake.
struct ReleaseGuard {
  std::string pod;
  std::string uid;
  std::string resource_version;
  FailedWakes failed_wakes;  ///< This one included.

  bool operator==(const ReleaseGuard&) const = default;
};

/// This replica is a guard from now on: it is out of the endpoints, and will sleep.
struct MakeGuard {
  std::string pod;
  std::string uid;
  std::string reason;  ///< For people.

  bool operator==(const MakeGuard&) const = default;
};

/// The agent of this guard has been told to put its engine to sleep.
struct PutToSleep {
  std::string pod;
  std::string uid;
  std::string address;

  bool operator==(const PutToSleep&) const = default;
};

/// The pod's readiness gate says whether it may be sent requests.
struct SetServing {
  std::string pod;
  std::string uid;
  bool may_serve = false;

  bool operator==(const SetServing&) const = default;
};

/// The pod is marked as one that goes once it is out of the endpoints.
struct Leave {
  std::string pod;
  std::string uid;
  Leaving leaving;

  bool operator==(const Leave&) const = default;
};

/// The ModelService's Kubernetes Service sends requests to its replicas (endpoint.h).
struct EnsureEndpoint {
  bool exists = false;  ///< It is there and ours, and is not as it should be.

  bool operator==(const EnsureEndpoint&) const = default;
};

/// The pod with this uid is gone. A pod of the same name with another uid is left alone.
struct DeleteInstance {
  using Cause = plan::Cause;
  std::string pod;
  std::string uid;
  Cause cause = Cause::kScaleIn;
  std::string reason;  ///< For people.

  bool operator==(const DeleteInstance&) const = default;
};

using Action = std::variant<CreateInstance, ClaimGuard, ReleaseGuard, MakeGuard, PutToSleep,
                            SetServing, Leave, EnsureEndpoint, DeleteInstance>;

/// One line for logs and the plan preview: "create demo-1 by Peer (Wake: no guards)".
std::string ToString(const Action& action);

/// What kind of action it is, for metrics: "CreateInstance", "ClaimGuard", ...
std::string_view KindOf(const Action& action);

}  // namespace rouse::plan
