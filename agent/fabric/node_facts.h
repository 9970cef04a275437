// Looks at the node for what weights could go by.

#pragma once

#include <string>

#include "common/node_facts.h"

namespace rouse::fabric {

/// Reads `root`/sys and `root`/dev. `node_folder`: where agents of the node find each other; empty:
/// nowhere.
NodeFacts LookAtNode(const std::string& node_folder, const std::string& root = "");

}  // namespace rouse::fabric
