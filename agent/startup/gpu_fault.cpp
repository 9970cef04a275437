#include "agent/startup/gpu_fault.h"

#include <algorithm>
#include <array>

namespace rouse::agent {
namespace {

constexpr std::array<std::uint64_t, 6> kOfApplications = {13, 31, 43, 45, 68, 109};

/// What NVIDIA's catalogue of Xids calls those that are seen most.
const char* NameOf(std::uint64_t xid) {
  switch (xid) {
    case 48:
      return " (double-bit ECC error)";
    case 63:
    case 64:
      return " (row remapping)";
    case 74:
      return " (NVLink error)";
    case 79:
      return " (the GPU has fallen off the bus)";
    case 94:
      return " (contained memory error)";
    case 95:
      return " (uncontained memory error)";
    case 119:
    case 120:
      return " (the GPU's system processor does not answer)";
    default:
      return "";
  }
}

}  // namespace

std::string FaultOf(const std::string& gpu, std::uint64_t xid) {
  if (xid == 0) return gpu + " cannot be reached by its driver any more; look at its node's log";
  if (std::ranges::find(kOfApplications, xid) != kOfApplications.end()) return "";
  return gpu + " has failed: Xid " + std::to_string(xid) + NameOf(xid) +
         "; look at its node's log and NVIDIA's catalogue of Xids";
}

}  // namespace rouse::agent
