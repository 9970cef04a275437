// Broadcasts between GPUs by NCCL, one process a GPU. libnccl.so.2 is opened at run time, as the
// driver is: where there is none (it comes with torch, not with the driver), peers pull.
//
// NCCL moves bytes over NVLink between two processes only if they have one host name, and one
// network namespace through whose abstract sockets they pass memory (src/misc/ipcsocket.cc);
// otherwise it goes over the network, far slower than a pull, without an error. So a domain
// (BroadcastDomain) is both of these: processes of one pod, and pods on the host's network. Two
// ordinary pods of a node never share one, and pull from each other, which needs neither.
//
// The agent does not choose this; agent/transfer/broadcast_source.h says why. Domains larger than a
// node (NVLink fabrics, where NCCL passes memory by fabric handles) are not asked of NVML.

#pragma once

#include <memory>
#include <string>

#include "agent/cuda/device.h"
#include "agent/memory/broadcaster.h"
#include "common/result.h"

namespace rouse::nccl {

/// Broadcasts go in pieces of this size whatever the slabs are, since all ranks must cut alike.
inline constexpr std::uint64_t kBroadcastPieceBytes = std::uint64_t{1} << 30;

/// For arenas on `device`, each broadcast with a communicator of its own. Unavailable when NCCL is
/// not at `library` or does not fit.
Result<std::unique_ptr<memory::Broadcaster>> NcclBroadcaster(
    std::shared_ptr<const cuda::Device> device, const std::string& library = "libnccl.so.2");

/// What a broadcast of this process cannot cross; empty when unknown.
std::string BroadcastDomain();

}  // namespace rouse::nccl
