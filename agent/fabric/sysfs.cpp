#include <ifaddrs.h>
#include <net/if.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <memory>
#include <set>
#include <string_view>

#include "agent/fabric/topology.h"

namespace rouse::fabric {
namespace {

namespace fs = std::filesystem;

// First line; empty when there is none.
std::string Line(const fs::path& file) {
  std::ifstream in(file);
  std::string line;
  std::getline(in, line);
  return line;
}

int NumberOr(std::string_view text, int otherwise) {
  int number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc() && end == text.data() + text.size() ? number : otherwise;
}

std::vector<std::string> Names(const fs::path& folder) {
  std::vector<std::string> names;
  std::error_code none;
  for (fs::directory_iterator it(folder, none), end; !none && it != end; it.increment(none)) {
    names.push_back(it->path().filename());
  }
  // "mlx5_2" before "mlx5_10".
  std::sort(names.begin(), names.end(), [](const std::string& a, const std::string& b) {
    return std::pair(a.size(), a) < std::pair(b.size(), b);
  });
  return names;
}

// `link` leads to ".../devices/pci0000:15/0000:15:01.0/...".
Place PlaceOf(const fs::path& link) {
  std::error_code none;
  const fs::path real = fs::canonical(link, none);
  if (none) return {};
  Place place;
  for (const fs::path& part : real) {
    if (!place.pci.empty() || part.string().starts_with("pci")) place.pci.push_back(part);
  }
  place.numa_node = NumberOr(Line(real / "numa_node"), -1);
  return place;
}

// "4: ACTIVE" and "400 Gb/sec (4X NDR)".
bool IsActive(const std::string& state) {
  return state.starts_with("4:");
}
double Rate(const std::string& rate) {
  double gbit = 0;
  std::from_chars(rate.data(), rate.data() + rate.size(), gbit);
  return gbit;
}

// The name of the device's node, "uverbs0".
std::string VerbsName(const fs::path& sys, const std::string& device) {
  for (const std::string& name : Names(sys / "class/infiniband_verbs")) {
    if (Line(sys / "class/infiniband_verbs" / name / "ibdev") == device) return name;
  }
  return "";
}

// "0-3,8" as in cpulist and in /proc/self/status.
std::set<int> ParseList(std::string_view text) {
  constexpr int kMost = 1 << 16;
  std::set<int> out;
  while (!text.empty()) {
    const std::string_view part = text.substr(0, text.find(','));
    text.remove_prefix(std::min(part.size() + 1, text.size()));
    const std::size_t dash = part.find('-');
    const int first = NumberOr(part.substr(0, dash), -1);
    const int last = dash == part.npos ? first : NumberOr(part.substr(dash + 1), -1);
    if (first < 0 || last > kMost) continue;
    for (int i = first; i <= last; ++i) out.insert(i);
  }
  return out;
}

std::set<int> AllowedCpus(const fs::path& status) {
  constexpr std::string_view kKey = "Cpus_allowed_list:";
  std::ifstream in(status);
  for (std::string line; std::getline(in, line);) {
    if (!line.starts_with(kKey)) continue;
    line.erase(0, line.find_first_not_of(" \t", kKey.size()));
    return ParseList(line);
  }
  return {};
}

}  // namespace

Topology ReadTopology(const std::string& root) {
  const fs::path sys = root + "/sys";
  Topology out;
  for (const std::string& device : Names(sys / "class/infiniband")) {
    const fs::path folder = sys / "class/infiniband" / device;
    const Place place = PlaceOf(folder / "device");
    const std::string verbs = VerbsName(sys, device);
    const std::string node = "/dev/infiniband/" + verbs;
    for (const std::string& port : Names(folder / "ports")) {
      out.ports.push_back(
          {.device = device,
           .port = NumberOr(port, 1),
           .active = IsActive(Line(folder / "ports" / port / "state")),
           .accessible = !verbs.empty() && ::access((root + node).c_str(), R_OK | W_OK) == 0,
           .device_node = node,
           .gbit_per_s = Rate(Line(folder / "ports" / port / "rate")),
           .place = place});
    }
  }
  return out;
}

std::optional<Place> PlaceOfPci(const std::string& address, const std::string& root) {
  Place place = PlaceOf(root + "/sys/bus/pci/devices/" + address);
  if (place.pci.empty()) return std::nullopt;
  return place;
}

Place PlaceOfProcess(const std::string& root) {
  const std::set<int> cpus = AllowedCpus(root + "/proc/self/status");
  const fs::path nodes = root + "/sys/devices/system/node";
  Place place;
  for (const std::string& name : Names(nodes)) {
    const int node = name.starts_with("node") ? NumberOr(std::string_view(name).substr(4), -1) : -1;
    if (node < 0) continue;
    const std::set<int> here = ParseList(Line(nodes / name / "cpulist"));
    const bool touches =
        std::any_of(cpus.begin(), cpus.end(), [&](int cpu) { return here.contains(cpu); });
    if (!touches) continue;
    if (place.numa_node >= 0) return {};
    place.numa_node = node;
  }
  return place;
}

std::vector<std::string> ActiveInterfaces() {
  ifaddrs* raw = nullptr;
  if (::getifaddrs(&raw) != 0) return {};
  const std::unique_ptr<ifaddrs, decltype(&::freeifaddrs)> list(raw, &::freeifaddrs);
  std::set<std::string> names;
  for (const ifaddrs* it = raw; it != nullptr; it = it->ifa_next) {
    const bool up = (it->ifa_flags & IFF_UP) != 0 && (it->ifa_flags & IFF_RUNNING) != 0;
    if (up && it->ifa_addr != nullptr && it->ifa_addr->sa_family == AF_INET) {
      names.insert(it->ifa_name);
    }
  }
  return {names.begin(), names.end()};
}

}  // namespace rouse::fabric
