// One pod of a ModelService, reduced to what decisions depend on. A value; pure.

#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>

#include "common/messages.h"
#include "common/role.h"
#include "operator/api/time.h"
#include "operator/plan/marks.h"

namespace rouse::plan {

using api::TimePoint;
using json::Json;

struct Instance {
  // Who it is.
  std::string ns;
  std::string name;
  std::string uid;
  std::string resource_version;  ///< Of the pod as it was read.
  std::string service;           ///< Label: name of its ModelService.
  std::string owner_uid;         ///< uid of the controlling owner.
  Role role = Role::kActive;
  std::string launch_identity;
  std::string revision;

  // How its start was decided.
  StartPath path = StartPath::kStorage;
  std::string path_reason;
  bool begins_without = false;  ///< A guard that gets no weights before it is woken.
  TimePoint decided_at;  ///< From the annotation, else when the pod was created. Of a guard that
                         ///< was claimed: when.
  std::optional<Leaving> leaving;
  FailedWakes failed_wakes;

  // What the kubelet says.
  std::string node;
  std::string zone;   ///< Labels topology.kubernetes.io/zone and .../rack of the pod, which
  std::string rack;   ///< Kubernetes or the user copies from its node; empty: unknown.
  std::string ip;     ///< Of the pod; empty until the kubelet has told.
  std::string phase;  ///< "Pending", "Running", "Succeeded", "Failed", "Unknown".
  std::string phase_message;
  bool node_lost = false;  ///< Its node is (node.h), which its pod does not tell.
  bool deleting = false;
  bool ready = false;
  bool gated = false;                   ///< It has the readiness gate rouse.dev/serving...
  bool may_serve = false;               ///< ...whose condition is True.
  std::string unschedulable;            ///< The scheduler's message; empty when it has a place.
  std::optional<TimePoint> started_at;  ///< When the kubelet took it.
  bool keeps_caches = false;            ///< It has a store for compile caches.
  bool agent_down = false;              ///< Its container waits to be started again.
  std::string crash_looping;            ///< "engine: ..." when a container crash-loops; else empty.
  int restarts = 0;                     ///< Of the crash-looping container.

  // What the agent said last.
  std::optional<AgentState> agent_state;
  std::string agent_message;
  std::string address;
  std::optional<WeightsReport> weights;
  BytesBySource bytes;
  std::string transport_fallback;  ///< Why weights came over TCP past RDMA; empty: they did not.
  std::string state_miss;          ///< Which installed compile caches were not used, and why.
  std::optional<Timeline> timeline;
  /// The annotations as they stand, to write only what changed.
  std::map<std::string, std::string> reported;

  bool operator==(const Instance&) const = default;
};

/// Reads a pod. Only a pod without name, uid, or the label rouse.dev/modelservice is an error;
/// annotations that do not parse read as not there, since anybody who may write pods may have
/// written them.
Result<Instance> InstanceFromPod(const Json& pod);

/// NAME-ORDINAL for this service; nullopt when `pod` is not of that form.
std::optional<int> Ordinal(const std::string& pod, const std::string& service);

}  // namespace rouse::plan
