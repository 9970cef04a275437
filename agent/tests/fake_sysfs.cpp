#include "agent/tests/fake_sysfs.h"

#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <stdexcept>

namespace rouse::fabric {

namespace fs = std::filesystem;

FakeSysfs::FakeSysfs() {
  char name[] = "/tmp/rouse-sysfs-XXXXXX";
  if (::mkdtemp(name) == nullptr) throw std::runtime_error("mkdtemp failed");
  root_ = name;
}

FakeSysfs::~FakeSysfs() {
  std::error_code ignored;
  fs::remove_all(root_, ignored);
}

void FakeSysfs::Write(const std::string& path, const std::string& text) {
  const fs::path file = fs::path(root_) / path;
  fs::create_directories(file.parent_path());
  std::ofstream(file) << text << "\n";
}

void FakeSysfs::AddPci(const std::string& pci, int numa_node) {
  Write("sys/devices/" + pci + "/numa_node", std::to_string(numa_node));
  const fs::path links = fs::path(root_) / "sys/bus/pci/devices";
  fs::create_directories(links);
  fs::create_symlink(fs::path("../../../devices") / pci, links / fs::path(pci).filename());
}

void FakeSysfs::Add(const Nic& nic) {
  std::string home = "virtual/infiniband/" + nic.device;
  if (!nic.pci.empty()) {
    AddPci(nic.pci, nic.numa_node);
    home = nic.pci + "/infiniband/" + nic.device;
  }
  for (int port = 1; port <= nic.ports; ++port) {
    const std::string folder = "sys/devices/" + home + "/ports/" + std::to_string(port);
    Write(folder + "/state", nic.state);
    Write(folder + "/rate", nic.rate);
  }
  const fs::path base(root_);
  if (!nic.pci.empty()) {
    fs::create_symlink("../..", base / "sys/devices" / home / "device");
  }
  fs::create_directories(base / "sys/class/infiniband");
  fs::create_symlink(fs::path("../../devices") / home, base / "sys/class/infiniband" / nic.device);
  const std::string verbs = "uverbs" + std::to_string(verbs_++);
  Write("sys/class/infiniband_verbs/" + verbs + "/ibdev", nic.device);
  if (nic.accessible) Write("dev/infiniband/" + verbs, "");
}

void FakeSysfs::AddNumaNode(int node, const std::string& cpulist) {
  Write("sys/devices/system/node/node" + std::to_string(node) + "/cpulist", cpulist);
}

void FakeSysfs::SetCpus(const std::string& list) {
  Write("proc/self/status", "Name:\ttest\nCpus_allowed:\tff\nCpus_allowed_list:\t" + list);
}

namespace {

// The buses of a DGX H100's eight switches.
const char* const kBuses[] = {"15", "38", "48", "59", "97", "b7", "c7", "d7"};

std::string Behind(const std::string& bus, const char* leaf) {
  return "pci0000:" + bus + "/0000:" + bus + ":01.0/" + leaf;
}

}  // namespace

std::string DgxGpu(int index) {
  return std::string("0000:") + kBuses[index][0] + "f:00.0";
}

void BuildDgxH100(FakeSysfs& sysfs) {
  sysfs.AddNumaNode(0, "0-55,112-167");
  sysfs.AddNumaNode(1, "56-111,168-223");
  for (int i = 0; i < 8; ++i) {
    const std::string bus = kBuses[i];
    const std::string part = "0000:" + bus;
    // One switch: a port up, one down for the NIC, another one with a second level for the GPU.
    sysfs.Add({.device = "mlx5_" + std::to_string(i),
               .pci = Behind(bus, "") + part + ":a0.0/" + part + ":b0.0/" + part + ":c0.0",
               .numa_node = i / 4});
    sysfs.AddPci(Behind(bus, "") + part + ":a0.0/" + part + ":b1.0/" + part + ":d0.0/" + DgxGpu(i),
                 i / 4);
  }
  for (int i = 0; i < 2; ++i) {
    sysfs.Add({.device = "mlx5_" + std::to_string(8 + i),
               .pci = i == 0 ? "pci0000:27/0000:27:01.0/0000:29:00.0"
                             : "pci0000:a7/0000:a7:01.0/0000:a9:00.0",
               .numa_node = i,
               .rate = "200 Gb/sec (4X HDR)",
               .ports = 2});
  }
}

}  // namespace rouse::fabric
