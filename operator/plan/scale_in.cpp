#include "operator/plan/scale_in.h"

#include <algorithm>
#include <tuple>

#include "operator/plan/source.h"

namespace rouse::plan {
namespace {

bool Pulls(const Instance& instance) {
  return instance.path == StartPath::kPeer && !IsServable(instance) && !instance.timeline &&
         instance.agent_state != AgentState::kWarming &&
         instance.agent_state != AgentState::kServing;
}

// True when `candidate` is the only source left in `staying` for somebody who pulls.
bool IsNeededSource(const Instance& candidate, const std::vector<const Instance*>& staying) {
  if (!IsServable(candidate)) return false;
  bool somebody_pulls = false;
  for (const Instance* other : staying) {
    if (other == &candidate || other->launch_identity != candidate.launch_identity) continue;
    if (IsServable(*other)) return false;
    somebody_pulls = somebody_pulls || Pulls(*other);
  }
  return somebody_pulls;
}

std::string Why(const Instance& instance, const std::string& revision) {
  if (instance.node.empty()) return "it has no node yet";
  if (!instance.ready) return "it does not serve yet";
  if (instance.revision != revision) return "it is of an older revision";
  return "it is the youngest";
}

}  // namespace

std::vector<Victim> ChooseVictims(const std::vector<const Instance*>& working, int count,
                                  const std::string& revision) {
  std::vector<const Instance*> order = working;
  std::sort(order.begin(), order.end(), [&](const Instance* a, const Instance* b) {
    const auto rank = [&](const Instance* i) {
      return std::make_tuple(!i->node.empty(), i->ready, i->revision == revision,
                             -api::ToMicros(i->decided_at));
    };
    if (rank(a) != rank(b)) return rank(a) < rank(b);
    return a->name > b->name;
  });
  std::vector<Victim> victims;
  std::vector<const Instance*> staying = order;
  for (const Instance* candidate : order) {
    if (static_cast<int>(victims.size()) >= count) break;
    if (IsNeededSource(*candidate, staying)) continue;
    victims.push_back({candidate, Why(*candidate, revision)});
    std::erase(staying, candidate);
  }
  return victims;
}

}  // namespace rouse::plan
