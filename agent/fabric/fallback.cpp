#include "agent/fabric/fallback.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <string_view>
#include <vector>

namespace rouse::fabric {
namespace {

std::vector<std::string_view> Split(std::string_view text) {
  std::vector<std::string_view> parts;
  while (!text.empty()) {
    parts.push_back(text.substr(0, text.find(',')));
    text.remove_prefix(std::min(parts.back().size() + 1, text.size()));
  }
  return parts;
}

/// UCX's lists: names, "all", or a ^ before the first of those that are not wanted.
struct List {
  bool negated = false;
  std::vector<std::string_view> names;

  explicit List(std::string_view text) {
    negated = text.starts_with('^');
    if (negated) text.remove_prefix(1);
    names = Split(text);
  }

  bool Names(std::string_view name) const {
    return std::find(names.begin(), names.end(), name) != names.end();
  }
};

// Each of UCX's RDMA transports with its other names.
constexpr std::array<std::string_view, 5> kRc = {"rc", "rc_v", "rc_x", "rc_verbs", "rc_mlx5"};
constexpr std::array<std::string_view, 3> kDc = {"dc", "dc_x", "dc_mlx5"};
constexpr std::array<std::string_view, 5> kUd = {"ud", "ud_v", "ud_x", "ud_verbs", "ud_mlx5"};

bool RdmaAllowed(const std::string& tls) {
  const List list(tls);
  const auto names_any = [&](const auto& family) {
    return std::any_of(family.begin(), family.end(), [&](std::string_view name) {
      return list.Names(name) || list.Names("\\" + std::string(name));
    });
  };
  if (list.negated) {
    return !list.Names("ib") && !list.Names("all") &&
           !(list.Names("rc") && list.Names("dc") && list.Names("ud"));
  }
  return list.Names("all") || list.Names("ib") || names_any(kRc) || names_any(kDc) ||
         names_any(kUd);
}

bool PortAllowed(const RdmaPort& port, const std::string& net_devices) {
  const List list(net_devices);
  if (list.negated) return !list.Names(port.Name());
  return list.Names("all") || list.Names(port.Name());
}

bool OverTcp(const std::string& transport) {
  const auto parts = Split(transport);
  return std::any_of(parts.begin(), parts.end(),
                     [](std::string_view part) { return part.starts_with("tcp/"); });
}

std::optional<std::string> Variable(const char* name) {
  const char* value = std::getenv(name);
  if (value == nullptr) return std::nullopt;
  return value;
}

}  // namespace

UcxSettings UcxSettings::OfEnvironment() {
  return {.tls = Variable("UCX_TLS"), .net_devices = Variable("UCX_NET_DEVICES")};
}

std::optional<std::string> FallbackReason(const std::string& transport, const Topology& topology,
                                          const UcxSettings& settings) {
  if (!OverTcp(transport)) return std::nullopt;
  if (settings.tls && !RdmaAllowed(*settings.tls)) return std::nullopt;
  std::vector<const RdmaPort*> ports;
  for (const RdmaPort& port : topology.ports) {
    if (!port.active) continue;
    if (settings.net_devices && !PortAllowed(port, *settings.net_devices)) continue;
    ports.push_back(&port);
  }
  if (ports.empty()) return std::nullopt;

  std::string text = "weights came over " + transport + " although this node has ";
  text += ports.size() == 1 ? "the active RDMA port " + ports.front()->Name()
                            : std::to_string(ports.size()) + " active RDMA ports (" +
                                  ports.front()->Name() + " to " + ports.back()->Name() + ")";
  const auto open = std::find_if(ports.begin(), ports.end(),
                                 [](const RdmaPort* port) { return port->accessible; });
  if (open == ports.end()) {
    text += ": the agent's container has no " + ports.front()->device_node +
            "; give it the RDMA device plugin's resource in spec.template";
  } else {
    text += ": the peer has none that " + (*open)->Name() +
            " can reach, or UCX refused it (see the agents' logs)";
  }
  return text + ". If TCP is meant, set UCX_TLS=tcp for the agent";
}

}  // namespace rouse::fabric
