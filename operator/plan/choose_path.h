// How missing replicas start: Wake, then Peer, then Storage, with the reason why each better path
// was not taken. Pure.

#pragma once

#include <optional>
#include <string>
#include <vector>

#include "operator/plan/observed.h"

namespace rouse::plan {

/// The decision for all missing replicas of one run: `start_now` of them start by `path`; the rest
/// waits for a source.
struct PathChoice {
  StartPath path = StartPath::kStorage;
  std::string reason;  ///< "Wake: no guards; Peer: ..."; a clause for each better path.
  int start_now = 0;

  int waiting = 0;          ///< Replicas that wait.
  std::string waiting_for;  ///< Name of the instance whose weights they wait for.
  std::optional<TimePoint>
      waiting_until;  ///< When they stop waiting; nullopt: not before it fails.
};

/// `working` are the instances that neither failed nor are being deleted, guards among them;
/// `missing` > 0; `no_wake` says why no guard is woken instead.
///
/// The first instance of a launch identity loads from storage, the others wait for it: without
/// limit when weights.fallback is None, else until policy.peer_wait after its start was decided
/// (a large model takes longer than anybody wants to wait twice, so then they load themselves).
PathChoice ChoosePath(const api::Spec& spec, const std::string& launch_identity,
                      const std::vector<const Instance*>& working, int missing,
                      const std::string& no_wake, const Policy& policy, TimePoint now);

}  // namespace rouse::plan
