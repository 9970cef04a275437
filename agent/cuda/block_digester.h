// Launches the digest kernel. Private to agent/cuda.

#pragma once

#include <cstdint>

#include "agent/cuda/digest_kernel.h"
#include "agent/cuda/handles.h"

namespace rouse::cuda {

/// Needs the device's context to be current in every call.
class BlockDigester {
 public:
  static Result<BlockDigester> Create(const Driver& driver);

  /// Digests `blocks` whole blocks from `data` on; `out` gets 16 bytes for each, on the device.
  Status Launch(CUdeviceptr data, std::uint64_t blocks, CUdeviceptr out, CUstream stream) const;

 private:
  BlockDigester(const Driver& driver, Module module, CUfunction function);

  const Driver* driver_;
  Module module_;
  CUfunction function_;
  DigestKeys keys_;
};

}  // namespace rouse::cuda
