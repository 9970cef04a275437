// Copies within a GPU, between GPUs of a node, and digests on the GPU.

#pragma once

#include <memory>

#include "agent/cuda/device.h"
#include "agent/memory/copy_engine.h"
#include "common/result.h"

namespace rouse::cuda {

/// For arenas in the memory of `device`; what is copied from may lie on another that it reaches.
/// Copies run on several streams, the digests of each piece on others as soon as it has arrived
/// (pieces are 256 MiB, cut at slab boundaries). Only 16 bytes for every 64 KiB come to the host.
///
/// Unavailable when the device has no code for it (too old).
Result<std::unique_ptr<memory::CopyEngine>> DeviceCopyEngine(std::shared_ptr<const Device> device);

}  // namespace rouse::cuda
