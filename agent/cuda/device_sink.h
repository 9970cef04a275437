// Reads of a checkpoint on into GPU memory: the storage writes into pinned staging buffers, from
// which the GPU fetches while the next reads run.

#pragma once

#include <memory>

#include "agent/cuda/device.h"
#include "agent/memory/arena.h"
#include "agent/storage/sink.h"
#include "common/result.h"

namespace rouse::cuda {

struct DeviceSinkOptions {
  std::uint64_t buffer_bytes = 2u << 20;  ///< At least the size of one read.
  std::size_t buffers = 32;  ///< More than reads in flight, so that some can be on their way on.
};

/// For `arena`, which lies on `device` and outlives the sink. The staging memory is taken here,
/// once (pinning costs about a third of a second a GiB), and given back with the sink.
Result<std::unique_ptr<storage::Sink>> DeviceSink(std::shared_ptr<const Device> device,
                                                  memory::Arena& arena,
                                                  const DeviceSinkOptions& options);

}  // namespace rouse::cuda
