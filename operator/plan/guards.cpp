#include "operator/plan/guards.h"

#include <algorithm>
#include <tuple>

#include "operator/plan/source.h"

namespace rouse::plan {
namespace {

constexpr int kAwake = 0;
constexpr int kWakes = 1;
constexpr int kSleeps = 2;
constexpr int kStarts = 3;

struct Candidate {
  const Instance* guard = nullptr;
  int kind = kStarts;
  std::vector<Peer> peers;

  auto Rank() const {
    const Distance distance = peers.empty() ? Distance::kFarther : peers.front().distance;
    return std::tuple(kind, guard->failed_wakes.count, kind == kSleeps ? distance : Distance::kNode,
                      api::ToMicros(guard->decided_at), guard->name);
  }
};

std::string Reason(const Candidate& candidate) {
  switch (candidate.kind) {
    case kAwake:
      return "this guard had not fallen asleep yet";
    case kWakes:
      return "this guard was waking already";
    case kStarts:
      return "this guard was starting already";
    default:
      return "this guard slept; weights of " + candidate.peers.front().pod + " (" +
             std::string(json::NameOf<Distance>(candidate.peers.front().distance, kDistances)) +
             ")";
  }
}

}  // namespace

bool IsUsableGuard(const Instance& guard) {
  return guard.agent_state == AgentState::kAsleep || guard.agent_state == AgentState::kSleeping ||
         guard.agent_state == AgentState::kServing || guard.agent_state == AgentState::kWaking;
}

bool IsWaking(const Instance& instance) {
  return instance.role == Role::kActive && instance.path == StartPath::kWake && !instance.ready &&
         instance.agent_state != AgentState::kServing;
}

GuardChoice ChooseGuards(const std::vector<const Instance*>& guards,
                         const std::vector<const Instance*>& sources, int missing,
                         const Policy& policy, TimePoint now) {
  GuardChoice choice;
  choice.why_not = "no guards";
  if (!guards.empty()) choice.why_not = "no other guards";
  std::vector<Candidate> candidates;
  std::vector<const Instance*> falling_asleep;
  for (const Instance* guard : guards) {
    const FailedWakes& failed = guard->failed_wakes;
    if (failed.count > 0 && !IsOver(failed.at, policy.wake_retry, now)) {
      choice.why_not = guard->name + " could not be woken: " + failed.reason;
      continue;
    }
    if (!IsUsableGuard(*guard)) {
      if (guard->begins_without) {
        choice.why_not = guard->name + " starts, and has no weights before it is woken";
      } else {
        candidates.push_back({.guard = guard, .kind = kStarts, .peers = {}});
      }
      continue;
    }
    if (guard->agent_down || guard->address.empty()) {
      choice.why_not = "the agent of " + guard->name + " is down";
      continue;
    }
    Candidate candidate{.guard = guard, .kind = kSleeps, .peers = PeersFor(*guard, sources)};
    if (guard->agent_state == AgentState::kServing) candidate.kind = kAwake;
    if (guard->agent_state == AgentState::kWaking) candidate.kind = kWakes;
    // The first one is a complete one, if there is any (source.h).
    const bool has_source = !candidate.peers.empty() && !candidate.peers.front().partial;
    if (candidate.kind == kSleeps && !has_source) {
      choice.why_not = "no instance has weights for " + guard->name;
    } else if (guard->agent_state == AgentState::kSleeping) {
      falling_asleep.push_back(guard);
    } else {
      candidates.push_back(std::move(candidate));
    }
  }
  std::sort(candidates.begin(), candidates.end(),
            [](const Candidate& a, const Candidate& b) { return a.Rank() < b.Rank(); });
  for (Candidate& candidate : candidates) {
    if (static_cast<int>(choice.claims.size()) >= missing) break;
    std::string reason = Reason(candidate);
    choice.claims.push_back({.guard = candidate.guard,
                             .wake = candidate.kind != kStarts,
                             .peers = std::move(candidate.peers),
                             .reason = std::move(reason)});
  }
  for (const Instance* guard : falling_asleep) {
    if (static_cast<int>(choice.claims.size() + choice.waiting_for.size()) >= missing) break;
    choice.waiting_for.push_back(guard);
  }
  return choice;
}

std::vector<const Instance*> ChooseSurplusGuards(const std::vector<const Instance*>& guards,
                                                 int count) {
  std::vector<const Instance*> order = guards;
  const auto rank = [](const Instance* guard) {
    return std::tuple(IsUsableGuard(*guard), !guard->node.empty(),
                      guard->agent_state == AgentState::kAsleep, -guard->failed_wakes.count,
                      -api::ToMicros(guard->decided_at));
  };
  std::sort(order.begin(), order.end(), [&](const Instance* a, const Instance* b) {
    return rank(a) != rank(b) ? rank(a) < rank(b) : a->name > b->name;
  });
  order.resize(std::min(order.size(), static_cast<std::size_t>(std::max(count, 0))));
  return order;
}

}  // namespace rouse::plan
