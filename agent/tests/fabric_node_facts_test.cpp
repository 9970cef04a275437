#include <catch2/catch.hpp>
#include <filesystem>

#include "agent/fabric/node_facts.h"
#include "agent/tests/fake_sysfs.h"

using namespace rouse;
using namespace rouse::fabric;

TEST_CASE("A node without devices has nothing to tell of") {
  const FakeSysfs sysfs;
  const NodeFacts facts = LookAtNode("", sysfs.root());
  CHECK(facts.rdma.empty());
  CHECK(facts.gpu_driver.empty());
  CHECK(facts.gpus == 0);
  CHECK_FALSE(facts.peer_memory);
  CHECK(facts.node_folder_problem == "there is none");
}

TEST_CASE("Ports, the driver, GPUs and the node folder are found") {
  FakeSysfs sysfs;
  sysfs.Add({.device = "mlx5_0", .pci = "", .rate = "400 Gb/sec (4X NDR)", .state = "4: ACTIVE"});
  sysfs.Add({.device = "mlx5_1", .pci = "", .state = "1: DOWN", .accessible = false});
  sysfs.Write("sys/module/nvidia/version", "580.159.04");
  sysfs.Write("sys/module/nvidia_peermem/refcnt", "0");
  for (const char* name : {"nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"}) {
    sysfs.Write(std::string("dev/") + name, "");
  }
  const NodeFacts facts = LookAtNode(sysfs.root(), sysfs.root());
  REQUIRE(facts.rdma.size() == 2);
  CHECK(facts.rdma[0] ==
        RdmaFact{.name = "mlx5_0:1", .active = true, .accessible = true, .gbit_per_s = 400});
  CHECK(facts.rdma[1].name == "mlx5_1:1");
  CHECK_FALSE(facts.rdma[1].active);
  CHECK_FALSE(facts.rdma[1].accessible);
  CHECK(facts.gpu_driver == "580.159.04");
  CHECK(facts.gpus == 2);
  CHECK(facts.peer_memory);
  CHECK(facts.node_folder_problem.empty());
  CHECK(LookAtNode("/nowhere", sysfs.root()).node_folder_problem ==
        "/nowhere: No such file or directory");

  const auto again = NodeFactsFromJson(ToJson(facts), "nodeFacts");
  REQUIRE(again.ok());
  CHECK(*again == facts);
}

TEST_CASE("What of a node cannot be looked at is not there") {
  const FakeSysfs sysfs;
  std::filesystem::create_directories(sysfs.root() + "/sys");
  std::filesystem::create_symlink("module", sysfs.root() + "/sys/module");  // To itself.
  CHECK_FALSE(LookAtNode("", sysfs.root()).peer_memory);
}

TEST_CASE("Facts of a node are bounded") {
  json::Json facts = ToJson(NodeFacts());
  for (int i = 0; i < 65; ++i) {
    facts["rdma"].push_back({{"name", "a"}, {"active", true}, {"accessible", true}});
  }
  CHECK(NodeFactsFromJson(facts, "nodeFacts").status().message().find("64") != std::string::npos);
  facts = ToJson(NodeFacts());
  facts["gpuDriver"] = std::string(513, 'x');
  CHECK(NodeFactsFromJson(facts, "nodeFacts").status().message().find("nodeFacts.gpuDriver") !=
        std::string::npos);
  facts["gpuDriver"] = 7;
  CHECK_FALSE(NodeFactsFromJson(facts, "nodeFacts").ok());
}
