// Whether weights silently took the slow road: TCP, on a node that has RDMA. Pure.

#pragma once

#include <optional>
#include <string>

#include "agent/fabric/topology.h"

namespace rouse::fabric {

/// What the user has told UCX; nullopt: nothing.
struct UcxSettings {
  std::optional<std::string> tls;          ///< UCX_TLS
  std::optional<std::string> net_devices;  ///< UCX_NET_DEVICES

  static UcxSettings OfEnvironment();
};

/// Why a transfer over `transport` (ucx::Endpoint::Transport, or several, separated by commas) is
/// one that should have gone over RDMA, with what may help, for the user. nullopt when it did not
/// go over TCP, when no port is active, and when the settings leave all of them out.
std::optional<std::string> FallbackReason(const std::string& transport, const Topology& topology,
                                          const UcxSettings& settings);

}  // namespace rouse::fabric
