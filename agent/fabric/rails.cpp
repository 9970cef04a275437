#include "agent/fabric/rails.h"

#include <algorithm>

namespace rouse::fabric {
namespace {

// A place below one root port is below one switch: nothing else can fan a root port out.
constexpr std::size_t kHostBridge = 1;
constexpr std::size_t kRootPort = 2;

std::size_t CommonParts(const std::vector<std::string>& a, const std::vector<std::string>& b) {
  const auto [end, ignored] = std::mismatch(a.begin(), a.end(), b.begin(), b.end());
  return static_cast<std::size_t>(end - a.begin());
}

std::string Words(Distance distance, const Place& memory) {
  switch (distance) {
    case Distance::kSameSwitch:
      return "below the same PCIe switch as the memory";
    case Distance::kSameHostBridge:
      return "below the same PCIe host bridge as the memory";
    case Distance::kSameNumaNode:
      return "on the memory's NUMA node " + std::to_string(memory.numa_node);
    case Distance::kFar:
      return memory.numa_node < 0 && memory.pci.empty() ? "none is nearer to the memory"
                                                        : "none is near the memory";
  }
  return "";
}

std::string WhyUnusable(const Topology& topology) {
  if (topology.ports.empty()) return "this node has no RDMA device";
  std::string why;
  for (const RdmaPort& port : topology.ports) {
    why += (why.empty() ? "" : ", ") + port.Name() +
           (port.active ? " is not given to this container" : " is not active");
  }
  return why;
}

}  // namespace

Distance DistanceOf(const Place& a, const Place& b) {
  const std::size_t common = CommonParts(a.pci, b.pci);
  if (common >= kRootPort) return Distance::kSameSwitch;
  if (common >= kHostBridge) return Distance::kSameHostBridge;
  if (a.numa_node >= 0 && a.numa_node == b.numa_node) return Distance::kSameNumaNode;
  return Distance::kFar;
}

Rails ChooseRails(const Topology& topology, const Place& memory) {
  std::vector<const RdmaPort*> usable;
  double fastest = 0;
  for (const RdmaPort& port : topology.ports) {
    if (!port.active || !port.accessible) continue;
    usable.push_back(&port);
    fastest = std::max(fastest, port.gbit_per_s);
  }
  if (usable.empty()) return {.reason = WhyUnusable(topology)};

  std::vector<const RdmaPort*> fast;
  for (const RdmaPort* port : usable) {
    if (port->gbit_per_s * 2 >= fastest) fast.push_back(port);
  }
  Distance nearest = Distance::kFar;
  for (const RdmaPort* port : fast) nearest = std::min(nearest, DistanceOf(port->place, memory));
  Rails rails;
  for (const RdmaPort* port : fast) {
    if (DistanceOf(port->place, memory) == nearest) rails.ports.push_back(port->Name());
  }
  rails.some_left_out = rails.ports.size() < usable.size();
  rails.reason = std::to_string(rails.ports.size()) + " of " + std::to_string(usable.size()) +
                 " usable ports: " + Words(nearest, memory);
  if (fast.size() < usable.size()) {
    rails.reason += "; " + std::to_string(usable.size() - fast.size()) + " are too slow";
  }
  return rails;
}

}  // namespace rouse::fabric
