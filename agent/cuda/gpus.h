// The GPUs of this machine, each opened when it is first asked for: a context takes some hundred MB
// of a GPU's memory.

#pragma once

#include <memory>

#include "agent/memory/memory.h"

namespace rouse::cuda {

/// Opens nothing yet, so that it can be had where there is no GPU.
std::shared_ptr<memory::Gpus> Gpus();

}  // namespace rouse::cuda
