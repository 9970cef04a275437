#include <catch2/catch.hpp>

#include "agent/startup/gpu_fault.h"

using rouse::agent::FaultOf;

TEST_CASE("An Xid of the GPU itself fails the instance, one of an application does not") {
  CHECK(FaultOf("GPU-1", 79) ==
        "GPU-1 has failed: Xid 79 (the GPU has fallen off the bus); look at its node's log and "
        "NVIDIA's catalogue of Xids");
  CHECK(FaultOf("GPU-1", 48).find("ECC") != std::string::npos);
  CHECK(FaultOf("GPU-1", 154).find("Xid 154;") != std::string::npos);
  CHECK(FaultOf("GPU-1", 0).find("cannot be reached") != std::string::npos);
  for (const std::uint64_t xid : {13, 31, 43, 45, 68, 109}) CHECK(FaultOf("GPU-1", xid).empty());
}
