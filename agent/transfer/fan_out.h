// Which of the instances that have a rank's weights, or are pulling them, each target is told
// about. Pure and seeded by names alone, so that all who ask for the same peers get the same
// answer; not for untrusted names.
//
//   - Bounded load: no peer is given to more than targets_per_source targets.
//   - Always a path: the first peer of each target is complete, or stands before the target in one
//     order of all targets. Following first peers therefore ends at a complete peer and never goes
//     round in a circle of targets that wait for each other.
//   - Near before far, with every other choice free of distance, because targets that only know
//     their own rack would wait for the one of them that knows another.
//   - Stable: candidates are ranked by rendezvous hashing (Thaler, Ravishankar: "Using name-based
//     mappings to increase hit rates", 1998), so that one peer more or less changes few answers.

#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "agent/transfer/peer_tier.h"

namespace rouse::transfer {

struct FanOutPeer {
  std::string name;  ///< "namespace/pod"; unique.
  Location where;
  bool complete = false;  ///< Has every chunk; else it is a target.
};

struct FanOutOptions {
  std::uint32_t sources_per_target = 8;
  std::uint32_t targets_per_source = 8;
};

/// For each peer the indices into `peers` of those that it should pull from, the one that its path
/// to a complete peer leads over first; nothing for complete peers. Without any complete peer one
/// target has no path, and the others' lead to it. Requires both options to be positive. Takes time
/// in proportion to targets times peers: 0.5 s for 4,096.
std::vector<std::vector<std::uint32_t>> AssignSources(std::span<const FanOutPeer> peers,
                                                      const FanOutOptions& options);

}  // namespace rouse::transfer
