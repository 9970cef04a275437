// What the tests over real verbs share.

#pragma once

#include <catch2/catch.hpp>
#include <cstdint>
#include <fstream>
#include <string>

namespace rouse::test {

/// Packets that the device has received: the proof that bytes went this way, whatever UCX says.
inline std::uint64_t PacketsReceived(const std::string& device) {
  std::ifstream file("/sys/class/infiniband/" + device + "/ports/1/hw_counters/rcvd_pkts");
  std::uint64_t packets = 0;
  file >> packets;
  INFO("this test needs the soft-RoCE device " << device << ": run make test-rdma");
  REQUIRE(file);
  return packets;
}

}  // namespace rouse::test
