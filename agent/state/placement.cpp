#include "agent/state/placement.h"

#include <algorithm>
#include <tuple>

#include "common/seeded.h"

namespace rouse::agent {
namespace {

/// Those of `keepers` that `which` holds for, in the order in which they are places.
template <typename Which>
std::vector<const Keeper*> Ordered(std::string_view fingerprint, const std::vector<Keeper>& keepers,
                                   Which which) {
  struct Weighed {
    std::uint64_t weight = 0;
    const Keeper* keeper = nullptr;
  };
  const std::uint64_t bundle = HashName(fingerprint);
  std::vector<Weighed> by_weight;
  for (const Keeper& keeper : keepers) {
    if (which(keeper)) by_weight.push_back({Mix(bundle ^ Mix(HashName(keeper.pod))), &keeper});
  }
  std::sort(by_weight.begin(), by_weight.end(), [](const Weighed& a, const Weighed& b) {
    return std::tie(b.weight, a.keeper->pod) < std::tie(a.weight, b.keeper->pod);
  });
  std::vector<const Keeper*> order;
  std::vector<const Keeper*> further;  // A heavier one is on their node.
  std::set<std::string_view> nodes;
  for (const Weighed& one : by_weight) {
    const bool first = one.keeper->node.empty() || nodes.insert(one.keeper->node).second;
    (first ? order : further).push_back(one.keeper);
  }
  order.insert(order.end(), further.begin(), further.end());
  return order;
}

std::vector<Keeper> FirstOf(const std::vector<const Keeper*>& keepers, std::size_t at_most) {
  std::vector<Keeper> first;
  for (const Keeper* keeper : keepers) {
    if (first.size() == at_most) break;
    first.push_back(*keeper);
  }
  return first;
}

}  // namespace

const Keeper* FindKeeper(const std::vector<Keeper>& keepers, std::string_view pod) {
  const auto found = std::find_if(keepers.begin(), keepers.end(),
                                  [&](const Keeper& keeper) { return keeper.pod == pod; });
  return found == keepers.end() ? nullptr : &*found;
}

std::vector<Keeper> PlacementOrder(std::string_view fingerprint,
                                   const std::vector<Keeper>& keepers) {
  return FirstOf(Ordered(fingerprint, keepers, [](const Keeper&) { return true; }), keepers.size());
}

std::vector<Keeper> PlacesOf(std::string_view fingerprint, const std::vector<Keeper>& keepers,
                             std::size_t copies) {
  return FirstOf(
      Ordered(fingerprint, keepers, [](const Keeper& keeper) { return !keeper.leaving; }), copies);
}

std::vector<Keeper> WhomToAsk(std::string_view fingerprint, const std::vector<Keeper>& keepers,
                              std::size_t copies, std::string_view self) {
  if (copies == 0) return {};
  auto order = Ordered(fingerprint, keepers, [](const Keeper&) { return true; });
  std::erase_if(order, [&](const Keeper* keeper) { return keeper->pod == self; });
  return FirstOf(order, copies + kAskFurther);
}

KeepStep NextKeepStep(std::string_view fingerprint, const KeepView& view,
                      const std::vector<Keeper>& keepers) {
  KeepStep step;
  bool is_place = false;
  for (Keeper& place : PlacesOf(fingerprint, keepers, view.copies)) {
    if (place.pod == view.pod) {
      is_place = true;
      continue;
    }
    if (!view.holding.contains(place.pod)) step.missing.push_back(place);
    step.places.push_back(std::move(place));
  }
  step.surplus = !view.own && !is_place && !step.places.empty() && step.missing.empty();
  return step;
}

}  // namespace rouse::agent
