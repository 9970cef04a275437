// Which agents of a namespace keep a copy of a bundle, so that it outlives the instances that have
// made it, and whoever looks for it finds it with no directory. Pure.
//
// Rendezvous (highest-random-weight) hashing (Thaler, Ravishankar: "Using name-based mappings to
// increase hit rates", IEEE/ACM Transactions on Networking 6(1), 1998): each agent has a weight for
// each bundle that follows from both names alone, and the heaviest ones are the bundle's places. So
// all who know of the same agents agree, and one agent more or less changes one place of a bundle
// at most: whatever moves is what the one that came is to have, or the one that went had.
//
// Copies are on different nodes where there are enough: a node's end takes all agents of it.

#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "common/messages.h"

namespace rouse::agent {

/// The agents that the operator has named, and what it has said of copies.
struct LiveKeepers {
  std::vector<Keeper> keepers;
  std::size_t copies = 0;  ///< Of this instance's own bundles.
};

/// The one of this pod; nullptr when it is not among them.
const Keeper* FindKeeper(const std::vector<Keeper>& keepers, std::string_view pod);

/// All of `keepers` in the order in which they are places of this bundle: the heaviest of each node
/// first, then the others. Those whose node is not known are on nodes of their own.
std::vector<Keeper> PlacementOrder(std::string_view fingerprint,
                                   const std::vector<Keeper>& keepers);

/// The first `copies` of that order, without agents that leave.
std::vector<Keeper> PlacesOf(std::string_view fingerprint, const std::vector<Keeper>& keepers,
                             std::size_t copies);

/// How many more than the bundle's places are asked by whoever looks for it: those that have come
/// since it was placed stand before the ones that have it.
inline constexpr std::size_t kAskFurther = 4;
/// Whom to ask for a bundle, in this order; without `self`. Agents that leave are among them.
std::vector<Keeper> WhomToAsk(std::string_view fingerprint, const std::vector<Keeper>& keepers,
                              std::size_t copies, std::string_view self);

/// One bundle that this agent holds.
struct KeepView {
  std::string_view pod;           ///< Its own name.
  bool own = false;               ///< They are its own instance's caches.
  std::size_t copies = 0;         ///< That there are to be.
  std::set<std::string> holding;  ///< Pods that have said that they hold it too.
};

struct KeepStep {
  std::vector<Keeper> places;   ///< The others that are to hold it.
  std::vector<Keeper> missing;  ///< Of them, those not known to.
  /// This copy is one too many: all that are to hold it do, and this agent is none of them. Never
  /// of one's own, and never while nobody is known that it should be with.
  bool surplus = false;
};

KeepStep NextKeepStep(std::string_view fingerprint, const KeepView& view,
                      const std::vector<Keeper>& keepers);

/// Of two bundles of one fingerprint, which instances of one launch have made each for itself, the
/// same one is kept everywhere: the one with more in it, else the one whose digest is greater.
struct BundleRank {
  std::uint64_t bytes = 0;
  std::string digest;

  auto operator<=>(const BundleRank&) const = default;
};

}  // namespace rouse::agent
