// Which NICs the bytes of a given memory go over ("rails"). Pure.
//
// UCX picks by its own guesses, and has been seen to put everything on one NIC, or on NICs of the
// other socket, where each byte crosses the CPUs' link twice. So the choice is made here:
//   1. ports that are active and that we may open;
//   2. of them those at least half as fast as the fastest: a management port is no rail;
//   3. of them all that are nearest to the memory, and no other.

#pragma once

#include <string>
#include <vector>

#include "agent/fabric/topology.h"

namespace rouse::fabric {

struct Rails {
  std::vector<std::string> ports;  ///< As UCX calls them; empty: no RDMA.
  /// Whether other usable ports were left out: only then need UCX be told which to take.
  bool some_left_out = false;
  std::string reason;  ///< In words, for the log.

  bool operator==(const Rails&) const = default;
};

/// `memory` is the place of a GPU, or of host memory (PlaceOfProcess); an unknown one has all ports
/// equally near.
Rails ChooseRails(const Topology& topology, const Place& memory);

}  // namespace rouse::fabric
