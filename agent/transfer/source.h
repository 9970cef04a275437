// Who to pull from and what, and whether it can be true. Pure.

#pragma once

#include <string>

#include "common/peer_messages.h"
#include "common/result.h"

namespace rouse::transfer {

/// One rank of a peer's OpenResponse.
struct PullSource {
  std::string name;            ///< For messages: "default/demo-0 (http://10.244.0.7:7410)".
  std::string worker_address;  ///< OpenResponse::worker_address.
  RemoteRank rank;
};

/// Whether a peer's description can be what it says: digests for every chunk, slabs that add up to
/// the arena, none over 4 GiB or wrapping around, a bit of availability for every chunk if any,
/// keys and address of a possible length; or no keys at all (InGpuMemory), and whole chunks if they
/// can be staged. InvalidArgument names the source and the field. A pull does this before it
/// connects.
Status CheckSource(const PullSource& source);
/// The same of parts that are somewhere already.
Status CheckSource(const std::string& name, const std::string& worker_address,
                   const RemoteRank& rank);

/// Whether a rank's slabs have no keys: they lie in a GPU's memory. Agents of the same node read
/// them by descriptor (node_pull.h), others through a copy that the source makes (staged_pull.h) if
/// it does.
bool InGpuMemory(const RemoteRank& rank);
bool CanBeStaged(const RemoteRank& rank);

/// FailedPrecondition, with the reason, unless the rank's slabs can be read by their keys.
Status CheckKeys(const RemoteRank& rank);

}  // namespace rouse::transfer
