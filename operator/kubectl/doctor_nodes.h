// What `kubectl rouse doctor` says of nodes: NICs, GPUs, their driver, and what agents of one node
// share. By what the agents there report. Pure.

#pragma once

#include <vector>

#include "operator/kubectl/doctor.h"

namespace rouse::kubectl {

/// One agent's word counts for its node.
void CheckNodes(const std::vector<ServiceView>& services, std::vector<Finding>& out);

}  // namespace rouse::kubectl
