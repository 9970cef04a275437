// Who can hand out weights, now or soon. Pure.

#pragma once

#include <string>
#include <vector>

#include "common/messages.h"
#include "operator/plan/observed.h"

namespace rouse::plan {

/// Why this instance cannot come up any more, for people; empty while it may.
std::string FailureOf(const Instance& instance, const Policy& policy, TimePoint now);

/// It runs, holds published and digested weights, and says where it can be reached. It need not
/// serve: an instance that pulled its weights hands them on before its engine is warm.
bool IsServable(const Instance& instance);

/// Not servable yet, and can be expected to become so without a peer's help.
bool IsComing(const Instance& instance, api::Fallback fallback, const Policy& policy,
              TimePoint now);

/// The instances that `target` may pull from, best first: on its node, then ready ones, then by
/// name. `others` may hold any instances; those of another service, owner or launch identity, and
/// the target itself, are left out.
std::vector<Peer> PeersFor(const Instance& target, const std::vector<const Instance*>& others);

}  // namespace rouse::plan
