#include "agent/state/fingerprint.h"

#include <sys/utsname.h>

#include <algorithm>
#include <fstream>
#include <sstream>

#include "common/json.h"
#include "common/sha256.h"

namespace rouse::agent {
namespace {

constexpr std::string_view kFeatures[] = {"avx2",     "avx512f", "avx512_bf16",
                                          "amx_tile", "asimd",   "sve"};

}  // namespace

std::string Fingerprint(CacheClass of, const std::string& identity, const Machine& machine) {
  return Sha256Hex(json::Canonical({{"version", 1},
                                    {"class", ToString(of)},
                                    {"identity", identity},
                                    {"architecture", machine.architecture},
                                    {"gpus", machine.gpus},
                                    {"features", machine.features}}));
}

std::vector<std::string> FeaturesOf(std::string_view cpuinfo) {
  std::istringstream lines{std::string(cpuinfo)};
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with("flags") && !line.starts_with("Features")) continue;
    std::istringstream words(line.substr(line.find(':') + 1));
    std::vector<std::string> found;
    for (std::string word; words >> word;) {
      if (std::find(std::begin(kFeatures), std::end(kFeatures), word) != std::end(kFeatures)) {
        found.push_back(word);
      }
    }
    std::sort(found.begin(), found.end());
    return found;
  }
  return {};
}

Machine ThisMachine(std::vector<std::string> gpus) {
  std::sort(gpus.begin(), gpus.end());
  gpus.erase(std::unique(gpus.begin(), gpus.end()), gpus.end());
  utsname name{};
  ::uname(&name);
  std::ostringstream cpuinfo;
  cpuinfo << std::ifstream("/proc/cpuinfo").rdbuf();
  return {
      .architecture = name.machine, .gpus = std::move(gpus), .features = FeaturesOf(cpuinfo.str())};
}

}  // namespace rouse::agent
