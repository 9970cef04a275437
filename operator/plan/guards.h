// Which guard takes the place of a missing replica, and which goes when there are too many. Pure.

#pragma once

#include <string>
#include <vector>

#include "operator/plan/observed.h"

namespace rouse::plan {

/// A guard that shall serve, and how.
struct GuardClaim {
  const Instance* guard = nullptr;
  bool wake = false;        ///< Its agent is to be told.
  std::vector<Peer> peers;  ///< Whose weights it wakes with.
  std::string reason;       ///< For people.
};

struct GuardChoice {
  std::vector<GuardClaim> claims;  ///< Best first.
  /// A replica waits for each of these: guards that are falling asleep can be woken in a moment.
  std::vector<const Instance*> waiting_for;
  std::string why_not;  ///< "no guards", or why those that are there cannot be woken.
};

/// At most `missing` of `guards` (those of the current revision that have not failed). First
/// whoever has not fallen asleep yet, then sleepers, those nearest to a source of weights first,
/// then those that are still starting. `sources` are whoever may have weights. A guard that could
/// not be woken is left alone for policy.wake_retry.
GuardChoice ChooseGuards(const std::vector<const Instance*>& guards,
                         const std::vector<const Instance*>& sources, int missing,
                         const Policy& policy, TimePoint now);

/// `count` (none, if negative) of `guards` in the order in which they go: those that cannot be
/// woken at once first, of equals the youngest.
std::vector<const Instance*> ChooseSurplusGuards(const std::vector<const Instance*>& guards,
                                                 int count);

/// It can be had at once: it sleeps, or is about to.
bool IsUsableGuard(const Instance& guard);

/// It was claimed and has not got up yet.
bool IsWaking(const Instance& instance);

}  // namespace rouse::plan
