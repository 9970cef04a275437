// The RDMA devices of this node and where they sit, as sysfs tells. Values, and their reader.
//
// What a container sees of sysfs is the node's, whether or not it was given the devices: a port may
// be there and out of reach.

#pragma once

#include <optional>
#include <string>
#include <vector>

namespace rouse::fabric {

/// Where a device, or memory, sits.
struct Place {
  /// From the host bridge down: {"pci0000:15", "0000:15:01.0", ..., "0000:1b:00.0"}. Empty for what
  /// is on no PCI bus (host memory, a device made of software).
  std::vector<std::string> pci;
  int numa_node = -1;  ///< -1: unknown, or all of them.

  bool operator==(const Place&) const = default;
};

/// How far apart two places are, the nearest first. The words are nvidia-smi's: PIX or PXB, PHB,
/// NODE, SYS.
enum class Distance { kSameSwitch, kSameHostBridge, kSameNumaNode, kFar };

Distance DistanceOf(const Place& a, const Place& b);

struct RdmaPort {
  std::string device;  ///< "mlx5_0"
  int port = 1;
  bool active = false;
  /// Whether the device's node in /dev/infiniband is there for us to open.
  bool accessible = false;
  std::string device_node;  ///< "/dev/infiniband/uverbs0"
  double gbit_per_s = 0;    ///< 0: not told.
  Place place;

  /// As UCX calls it: "mlx5_0:1".
  std::string Name() const { return device + ":" + std::to_string(port); }

  bool operator==(const RdmaPort&) const = default;
};

struct Topology {
  std::vector<RdmaPort> ports;  ///< By name.

  bool operator==(const Topology&) const = default;
};

/// Reads `root`/sys and `root`/dev; what is not there, or makes no sense, is left out.
Topology ReadTopology(const std::string& root = "");

/// The place of a GPU (or any PCI device) by its address, "0000:1b:00.0"; nullopt when there is
/// none.
std::optional<Place> PlaceOfPci(const std::string& address, const std::string& root = "");

/// The place of this process's host memory: the NUMA node to which its CPUs belong, unless they are
/// of several.
Place PlaceOfProcess(const std::string& root = "");

/// Network interfaces that are up and have an address: those that UCX can use for TCP.
std::vector<std::string> ActiveInterfaces();

}  // namespace rouse::fabric
