// Broadcasts between GPUs by NCCL, one process a GPU. libnccl.so.2 is opened at run time, as the
// driver is: where there is none (it comes with torch, not with the driver), peers pull.
//
// NCCL moves bytes over NVLink between two processes only if it takes them for those of one
// machine: one host name and boot (or NCCL_HOSTID), one file system at /dev/shm (ncclTopoCheckP2p),
// and one network namespace, through whose abstract sockets they pass memory
// (src/misc/ipcsocket.cc). Otherwise it fails, or goes over the network without an error: 4 GB/s
// instead of 368 where it was tried. So a domain (DomainName) is all of these. Pods have them in
// common with hostNetwork and hostIPC; two ordinary pods of a node pull from each other, which
// needs none of it. And a broadcast that is far too slow is given up (CheckRate).
//
// Between network namespaces there are CUDA's older handles (NCCL_CUMEM_ENABLE=0), if /dev/shm is
// shared and no two processes have one number, and agents are number 1 of their containers; a
// process with another number would first need a CUDA context, for longer than a broadcast gains.
// Domains larger than a node (NVLink fabrics, where NCCL passes memory by fabric handles) are not
// asked of NVML.

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

/// For every GPU that this process sees. Opens nothing before it is asked.
std::shared_ptr<memory::Broadcasting> NcclBroadcasting(const std::string& library);

/// DeadlineExceeded when a broadcast that moved so many bytes in so long a time, from its first one
/// on, must be going over a network. The first second does not tell: NCCL connects in it.
Status CheckRate(std::uint64_t bytes, double seconds);

/// What a broadcast of this process cannot cross; empty when unknown.
std::string DomainName();

}  // namespace rouse::nccl
