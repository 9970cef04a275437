// A made-up /sys and /dev below a temporary folder.

#pragma once

#include <string>
#include <vector>

namespace rouse::fabric {

class FakeSysfs {
 public:
  FakeSysfs();
  ~FakeSysfs();
  FakeSysfs(const FakeSysfs&) = delete;
  FakeSysfs& operator=(const FakeSysfs&) = delete;

  /// What to give to ReadTopology.
  const std::string& root() const { return root_; }

  struct Nic {
    std::string device;  ///< "mlx5_0"
    std::string pci;     ///< "pci0000:15/0000:15:01.0/0000:18:00.0"; empty: of software
    int numa_node = -1;
    std::string rate = "400 Gb/sec (4X NDR)";
    std::string state = "4: ACTIVE";
    bool accessible = true;
    int ports = 1;
  };
  void Add(const Nic& nic);
  /// A GPU, or any other PCI device; its address is the last part of `pci`.
  void AddPci(const std::string& pci, int numa_node);
  void AddNumaNode(int node, const std::string& cpulist);
  /// CPUs of this process.
  void SetCpus(const std::string& list);
  void Write(const std::string& path, const std::string& text);

 private:
  std::string root_;
  int verbs_ = 0;
};

/// A DGX H100: eight GPUs, each below one PCIe switch with its own 400 Gb/s port, four to a socket;
/// and two storage NICs of two 200 Gb/s ports below bridges of their own. The address of GPU i is
/// DgxGpu(i), its port "mlx5_i:1" for i in order; the storage ports are mlx5_8:1, :2, mlx5_9:1, :2.
void BuildDgxH100(FakeSysfs& sysfs);
std::string DgxGpu(int index);

}  // namespace rouse::fabric
