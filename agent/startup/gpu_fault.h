// Whether an Xid that the driver reported of a GPU means that the instance on it has failed. Pure.

#pragma once

#include <cstdint>
#include <string>

namespace rouse::agent {

/// Why this instance has failed; empty when the Xid is of an engine's own doing (a fault of its
/// code, or that it was ended), which the engine's end tells better: those that NVIDIA's device
/// plugin for Kubernetes takes for application errors. 0 is no Xid: the GPU is gone.
std::string FaultOf(const std::string& gpu, std::uint64_t xid);

}  // namespace rouse::agent
