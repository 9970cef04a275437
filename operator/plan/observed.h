// What the planner is told: one ModelService and the pods that it controls. A value.

#pragma once

#include <chrono>
#include <optional>
#include <vector>

#include "operator/api/model_service.h"
#include "operator/plan/endpoint.h"
#include "operator/plan/instance.h"

namespace rouse::plan {

/// The operator's own settings that decisions depend on; from its flags.
struct Policy {
  /// With weights.fallback Storage: how long after the decision for a source replicas wait for its
  /// weights before they load from storage themselves.
  std::chrono::milliseconds peer_wait{120'000};
  /// An instance that has not served this long after the kubelet took it has failed.
  std::chrono::milliseconds start_deadline{3'600'000};
  /// A container that crash-loops after this many restarts has failed.
  int max_restarts = 3;
  /// Wait before a replacement: nothing after the first failure, then this, doubled each time.
  std::chrono::milliseconds backoff_first{10'000};
  std::chrono::milliseconds backoff_max{300'000};
  /// A guard that was claimed and sleeps on after this long is a guard again; one that has begun to
  /// wake has failed. Longer than the agent's own limit.
  std::chrono::milliseconds wake_deadline{150'000};
  /// A guard that was claimed and sleeps on is told again after this long: its agent may have been
  /// started anew since it was told.
  std::chrono::milliseconds wake_again{3'000};
  /// How long a guard that could not be woken is left alone. After kMaxFailedWakes it is retired.
  std::chrono::milliseconds wake_retry{60'000};
  /// How long an instance that shall go is waited for to be out of the endpoints.
  std::chrono::milliseconds leave_deadline{30'000};

  bool operator==(const Policy&) const = default;
};

inline constexpr int kMaxFailedWakes = 2;

/// Whether a wait is over that began at `since`, a moment that was written down. One that lies
/// farther ahead than the wait itself is of a clock that was wrong, as ours may have been: it is
/// not waited for.
inline bool IsOver(TimePoint since, std::chrono::milliseconds wait, TimePoint now) {
  return now >= since + wait || since > now + wait;
}

struct Observed {
  api::ModelService service;
  /// Pods with this ModelService's uid as controller, in any order. A pod of another owner never
  /// gets here.
  std::vector<Instance> instances;
  /// Names of pods of others that look like ours: NAME-ORDINAL, not to be used.
  std::vector<std::string> taken_names;
  /// The Kubernetes Service of its name that carries its label.
  std::optional<Endpoint> endpoint;
  /// Its name is that of a Service of somebody else.
  bool endpoint_taken = false;
  Policy policy;

  bool operator==(const Observed&) const = default;
};

}  // namespace rouse::plan
