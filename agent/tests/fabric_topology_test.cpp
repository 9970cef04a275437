#include <algorithm>
#include <catch2/catch.hpp>
#include <filesystem>

#include "agent/fabric/rails.h"
#include "agent/tests/fake_sysfs.h"

namespace rouse::fabric {
namespace {

using Names = std::vector<std::string>;

Rails RailsOfGpu(const FakeSysfs& sysfs, const std::string& address) {
  const auto gpu = PlaceOfPci(address, sysfs.root());
  REQUIRE(gpu.has_value());
  return ChooseRails(ReadTopology(sysfs.root()), *gpu);
}

TEST_CASE("each GPU of a DGX H100 has the NIC below its own switch", "[fabric]") {
  FakeSysfs sysfs;
  BuildDgxH100(sysfs);
  for (int i = 0; i < 8; ++i) {
    const Rails rails = RailsOfGpu(sysfs, DgxGpu(i));
    CHECK(rails.ports == Names{"mlx5_" + std::to_string(i) + ":1"});
    CHECK(rails.some_left_out);
    CHECK_THAT(rails.reason, Catch::Contains("1 of 12 usable ports") &&
                                 Catch::Contains("same PCIe switch as the memory"));
  }
}

TEST_CASE("a GPU whose own NIC is down takes those of its socket", "[fabric]") {
  FakeSysfs sysfs;
  BuildDgxH100(sysfs);
  sysfs.Write("sys/class/infiniband/mlx5_5/ports/1/state", "1: DOWN");
  const Rails rails = RailsOfGpu(sysfs, DgxGpu(5));
  // Four of socket 1 without its own, and the storage NIC there.
  CHECK(rails.ports == Names{"mlx5_4:1", "mlx5_6:1", "mlx5_7:1", "mlx5_9:1", "mlx5_9:2"});
  CHECK_THAT(rails.reason, Catch::Contains("NUMA node 1"));
}

TEST_CASE("host memory of a process bound to one socket has that socket's NICs", "[fabric]") {
  FakeSysfs sysfs;
  BuildDgxH100(sysfs);
  sysfs.SetCpus("60-67,168");
  const Place memory = PlaceOfProcess(sysfs.root());
  CHECK(memory.numa_node == 1);
  const Rails rails = ChooseRails(ReadTopology(sysfs.root()), memory);
  CHECK(rails.ports ==
        Names{"mlx5_4:1", "mlx5_5:1", "mlx5_6:1", "mlx5_7:1", "mlx5_9:1", "mlx5_9:2"});
  CHECK(rails.some_left_out);
}

TEST_CASE("host memory of a process that runs anywhere has all NICs", "[fabric]") {
  FakeSysfs sysfs;
  BuildDgxH100(sysfs);
  sysfs.SetCpus("0-223");
  const Place memory = PlaceOfProcess(sysfs.root());
  CHECK(memory.numa_node == -1);
  const Rails rails = ChooseRails(ReadTopology(sysfs.root()), memory);
  CHECK(rails.ports.size() == 12);
  CHECK_FALSE(rails.some_left_out);  // UCX is told nothing
}

TEST_CASE("the one NIC of a two-socket host serves both sockets", "[fabric]") {
  FakeSysfs sysfs;
  sysfs.AddNumaNode(0, "0-31");
  sysfs.AddNumaNode(1, "32-63");
  sysfs.Add({.device = "mlx5_0",
             .pci = "pci0000:17/0000:17:00.0/0000:18:00.0",
             .numa_node = 0,
             .rate = "100 Gb/sec (4X EDR)"});
  sysfs.AddPci("pci0000:17/0000:17:02.0/0000:1a:00.0", 0);
  sysfs.AddPci("pci0000:b3/0000:b3:00.0/0000:b4:00.0", 1);
  for (const char* gpu : {"0000:1a:00.0", "0000:b4:00.0"}) {
    const Rails rails = RailsOfGpu(sysfs, gpu);
    CHECK(rails.ports == Names{"mlx5_0:1"});
    CHECK_FALSE(rails.some_left_out);
  }
  CHECK_THAT(RailsOfGpu(sysfs, "0000:1a:00.0").reason, Catch::Contains("same PCIe host bridge"));
  CHECK_THAT(RailsOfGpu(sysfs, "0000:b4:00.0").reason, Catch::Contains("none is near"));
}

TEST_CASE("a slow port is no rail, even where it is the nearer one", "[fabric]") {
  FakeSysfs sysfs;
  sysfs.Add({.device = "mlx5_0",
             .pci = "pci0000:17/0000:17:00.0/0000:18:00.0",
             .numa_node = 0,
             .rate = "400 Gb/sec (4X NDR)"});
  sysfs.Add({.device = "mlx5_1",
             .pci = "pci0000:b3/0000:b3:00.0/0000:b4:00.0",
             .numa_node = 1,
             .rate = "25 Gb/sec (1X EDR)"});
  sysfs.AddPci("pci0000:b3/0000:b3:01.0/0000:b5:00.0", 1);
  const Rails rails = RailsOfGpu(sysfs, "0000:b5:00.0");
  CHECK(rails.ports == Names{"mlx5_0:1"});
  CHECK(rails.some_left_out);
  CHECK_THAT(rails.reason, Catch::Contains("1 are too slow"));
}

TEST_CASE("without an RDMA device nothing is chosen", "[fabric]") {
  const FakeSysfs sysfs;
  CHECK(ReadTopology(sysfs.root()).ports.empty());
  CHECK(ChooseRails(ReadTopology(sysfs.root()), PlaceOfProcess(sysfs.root())) ==
        Rails{.ports = {}, .some_left_out = false, .reason = "this node has no RDMA device"});
  CHECK(PlaceOfPci("0000:1a:00.0", sysfs.root()) == std::nullopt);
}

TEST_CASE("devices that are down or not given to the container are not chosen, and named",
          "[fabric]") {
  FakeSysfs sysfs;
  sysfs.Add({.device = "mlx5_0", .pci = "pci0000:17/0000:18:00.0", .state = "1: DOWN"});
  sysfs.Add({.device = "mlx5_1", .pci = "pci0000:17/0000:19:00.0", .accessible = false});
  const Rails rails = ChooseRails(ReadTopology(sysfs.root()), {});
  CHECK(rails.ports.empty());
  CHECK(rails.reason == "mlx5_0:1 is not active, mlx5_1:1 is not given to this container");
}

TEST_CASE("a device made of software is read too", "[fabric]") {
  FakeSysfs sysfs;
  sysfs.Add({.device = "rxe0", .rate = "2.5 Gb/sec (1X SDR)"});
  const Topology topology = ReadTopology(sysfs.root());
  REQUIRE(topology.ports.size() == 1);
  CHECK(topology.ports[0] == RdmaPort{.device = "rxe0",
                                      .port = 1,
                                      .active = true,
                                      .accessible = true,
                                      .device_node = "/dev/infiniband/uverbs0",
                                      .gbit_per_s = 2.5,
                                      .place = {}});
  CHECK(ChooseRails(topology, {}).ports == Names{"rxe0:1"});
}

TEST_CASE("nonsense in sysfs is passed over", "[fabric]") {
  FakeSysfs sysfs;
  sysfs.Add({.device = "mlx5_0", .pci = "pci0000:17/0000:18:00.0", .rate = "fast"});
  sysfs.Write("sys/bus/pci/devices/0000:18:00.0/numa_node", "none");
  sysfs.Write("sys/class/infiniband/mlx5_0/ports/1/state", "");
  sysfs.SetCpus("3-1,x,-,99999999999");
  sysfs.AddNumaNode(0, "garbage");
  const Topology topology = ReadTopology(sysfs.root());
  REQUIRE(topology.ports.size() == 1);
  CHECK(topology.ports[0].gbit_per_s == 0);
  CHECK(topology.ports[0].place.numa_node == -1);
  CHECK_FALSE(topology.ports[0].active);
  CHECK(PlaceOfProcess(sysfs.root()) == Place{});
}

TEST_CASE("this machine's loopback is an interface that TCP can use", "[fabric]") {
  const Names names = ActiveInterfaces();
  CHECK(std::find(names.begin(), names.end(), "lo") != names.end());
}

}  // namespace
}  // namespace rouse::fabric
