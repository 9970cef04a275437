#include "operator/plan/scale_in.h"

#include <algorithm>
#include <tuple>

#include "operator/plan/guards.h"
#include "operator/plan/source.h"

namespace rouse::plan {
namespace {

bool Pulls(const Instance& instance) {
  if (IsWaking(instance)) return true;
  if (instance.agent_state == AgentState::kAsleep ||
      instance.agent_state == AgentState::kSleeping) {
    return false;
  }
  return instance.path == StartPath::kPeer && !IsServable(instance) && !instance.timeline &&
         instance.agent_state != AgentState::kWarming &&
         instance.agent_state != AgentState::kServing;
}

std::string Why(const Instance& instance, const std::string& revision) {
  if (instance.node.empty()) return "it has no node yet";
  if (!instance.ready) return "it does not serve yet";
  if (instance.revision != revision) return "it is of an older revision";
  return "it is the youngest";
}

}  // namespace

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

std::vector<Victim> ChooseVictims(const std::vector<const Instance*>& working, int count,
                                  const std::string& revision,
                                  const std::vector<const Instance*>& others) {
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
  staying.insert(staying.end(), others.begin(), others.end());
  for (const Instance* candidate : order) {
    if (static_cast<int>(victims.size()) >= count) break;
    if (IsNeededSource(*candidate, staying)) continue;
    victims.push_back({candidate, Why(*candidate, revision)});
    std::erase(staying, candidate);
  }
  return victims;
}

}  // namespace rouse::plan
