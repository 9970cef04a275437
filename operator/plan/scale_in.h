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

/// Whether somebody of `staying` still has to pull weights that only `candidate` has.
bool IsNeededSource(const Instance& candidate, const std::vector<const Instance*>& staying);

/// Up to `count` of `working`, in the order in which they go: not yet placed on a node, not ready,
/// outdated (another revision than `revision`), youngest, highest name.
///
/// An instance is spared while it is the only one that can hand out weights of its launch identity
/// and another one, which stays, still has to pull them; fewer than `count` may therefore come
/// back. `others` may have to pull too, or have the weights, but do not go.
std::vector<Victim> ChooseVictims(const std::vector<const Instance*>& working, int count,
                                  const std::string& revision,
                                  const std::vector<const Instance*>& others = {});

}  // namespace rouse::plan
