#include "agent/fabric/node_facts.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "agent/fabric/topology.h"

namespace rouse::fabric {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kMaxVersion = 64;

std::string DriverVersion(const std::string& root) {
  std::ifstream file(root + "/sys/module/nvidia/version");
  std::string text;
  std::getline(file, text);
  text.resize(std::min(text.size(), kMaxVersion));
  return text;
}

// /dev/nvidia0, not /dev/nvidiactl.
bool IsGpu(const std::string& name) {
  constexpr std::string_view kPrefix = "nvidia";
  return name.starts_with(kPrefix) && name.size() > kPrefix.size() &&
         std::all_of(name.begin() + kPrefix.size(), name.end(),
                     [](unsigned char letter) { return std::isdigit(letter) != 0; });
}

std::uint64_t GpusToOpen(const std::string& root) {
  std::uint64_t count = 0;
  std::error_code none;
  for (fs::directory_iterator it(root + "/dev", none), end; !none && it != end;
       it.increment(none)) {
    const bool gpu = IsGpu(it->path().filename().string());
    if (gpu && ::access(it->path().c_str(), R_OK | W_OK) == 0) ++count;
  }
  return count;
}

std::string FolderProblem(const std::string& folder) {
  if (folder.empty()) return "there is none";
  if (::access(folder.c_str(), W_OK | X_OK) == 0) return "";
  return folder + ": " + std::strerror(errno);
}

std::int64_t LockedMemory() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_MEMLOCK, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return -1;
  return static_cast<std::int64_t>(limit.rlim_cur);
}

}  // namespace

NodeFacts LookAtNode(const std::string& node_folder, const std::string& root) {
  std::error_code unknown;
  NodeFacts facts{.rdma = {},
                  .gpu_driver = DriverVersion(root),
                  .gpus = GpusToOpen(root),
                  .peer_memory = fs::exists(root + "/sys/module/nvidia_peermem", unknown),
                  .node_folder_problem = FolderProblem(node_folder),
                  .locked_memory = LockedMemory()};
  for (const RdmaPort& port : ReadTopology(root).ports) {
    if (facts.rdma.size() == kMaxRdmaFacts) break;
    facts.rdma.push_back({.name = port.Name(),
                          .active = port.active,
                          .accessible = port.accessible,
                          .gbit_per_s = static_cast<std::uint64_t>(port.gbit_per_s)});
  }
  return facts;
}

}  // namespace rouse::fabric
