#include <algorithm>
#include <sstream>
#include <vector>

#include "agent/ucx/endpoint.h"

namespace rouse::ucx {
namespace {

struct Lane {
  std::string transport;  // "tcp/eth0"
  std::vector<std::string> uses;

  bool Has(std::string_view use) const {
    return std::any_of(uses.begin(), uses.end(), [&](const std::string& known) {
      return known.substr(0, known.find('#')) == use;
    });
  }
};

// "  lane[0]:  3:sysv/memory.0 md[2]  -> md[2]/sysv/sysdev[255] am am_bw#0 keepalive"
bool ParseLane(const std::string& line, Lane& lane) {
  const std::size_t start = line.find("lane[");
  const std::size_t colon = line.find("]:", start);
  const std::size_t arrow = line.find("->");
  if (start == std::string::npos || colon == std::string::npos || arrow == std::string::npos) {
    return false;
  }
  std::istringstream left(line.substr(colon + 2, arrow - colon - 2));
  left >> lane.transport;
  lane.transport.erase(0, lane.transport.find(':') + 1);  // number of the resource
  if (const std::size_t dot = lane.transport.rfind('.'); dot != std::string::npos) {
    lane.transport.erase(dot);  // number of the path
  }
  std::istringstream right(line.substr(arrow + 2));
  std::string use;
  right >> use;  // the peer's memory domain
  while (right >> use) lane.uses.push_back(use);
  return lane.transport.find('/') != std::string::npos;
}

}  // namespace

// UCX 1.13 can only print this; newer ones answer ucp_ep_query, but print it in the same form.
// Reads go over the lanes for remote memory access, or, where there is none, in software over the
// lane for active messages.
std::string ParseTransport(std::string_view endpoint_info) {
  std::vector<Lane> lanes;
  std::istringstream lines{std::string(endpoint_info)};
  for (std::string line; std::getline(lines, line);) {
    if (Lane lane; ParseLane(line, lane)) lanes.push_back(std::move(lane));
  }
  for (const auto& wanted : {std::vector<std::string>{"rma_bw", "rma"}, {"am", "am_bw"}}) {
    std::vector<std::string> names;
    for (const Lane& lane : lanes) {
      const bool match = std::any_of(wanted.begin(), wanted.end(),
                                     [&](const std::string& use) { return lane.Has(use); });
      if (match && std::find(names.begin(), names.end(), lane.transport) == names.end()) {
        names.push_back(lane.transport);
      }
    }
    std::string joined;
    for (const std::string& name : names) joined += (joined.empty() ? "" : ",") + name;
    if (!joined.empty()) return joined;
  }
  return "";
}

}  // namespace rouse::ucx
