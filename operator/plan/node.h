// A node as far as decisions depend on it: whether it is lost. Pure.

#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "common/json.h"

namespace rouse::plan {

using json::Json;

struct Node {
  std::string name;
  /// Its condition Ready is not True: its kubelet says so, or has said nothing for so long (40 s by
  /// default) that the node's controller does. Requests reach no pod there any more, since all of
  /// them are taken for not ready, and Kubernetes evicts them five minutes later.
  bool lost = false;

  bool operator==(const Node&) const = default;
};

/// What is of an unexpected type reads as not there; a node that says nothing of itself is not
/// lost, it is new.
Node NodeFromObject(const Json& node);

/// Whether `lost` of `all` nodes are to be believed lost. When all are, or most of more than two,
/// it is the control plane that does not hear of them: instances there go on serving, and there is
/// nowhere to start others. The bounds are those from which Kubernetes' node lifecycle controller
/// evicts nothing (its --unhealthy-zone-threshold).
bool CanBeLost(std::size_t lost, std::size_t all);

}  // namespace rouse::plan
