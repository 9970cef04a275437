// Which instances go first. Pure.

#pragma once

#include <string>
#include <vector>

#include "operator/plan/observed.h"

namespace rouse::plan {

/// An instance that shall go, and why it and no other.
struct Victim {
  const Instance* instance = nullptr;
  std::string reason;
};

/// Up to `count` of `working`, in the order in which they go: not yet placed on a node, not ready,
/// outdated (another revision than `revision`), youngest, highest name.
///
/// An instance is spared while it is the only one that can hand out weights of its launch identity
/// and another one, which stays, still has to pull them; fewer than `count` may therefore come
/// back.
std::vector<Victim> ChooseVictims(const std::vector<const Instance*>& working, int count,
                                  const std::string& revision);

}  // namespace rouse::plan
