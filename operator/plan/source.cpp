#include "operator/plan/source.h"

#include <algorithm>
#include <cstdint>
#include <tuple>

#include "common/seeded.h"
#include "operator/plan/guards.h"

namespace rouse::plan {
namespace {

constexpr std::size_t kMaxPeers = 64;  // More than any agent tries; bounds the answer.
constexpr std::size_t kEarliest = 8;   // More than are likely to fail one after the other.

bool CanBeAsked(const Instance& instance) {
  return !instance.deleting && !instance.node_lost && !instance.agent_down && instance.weights &&
         !instance.address.empty() && instance.agent_state != AgentState::kFailed;
}

bool SameLaunch(const Instance& target, const Instance& other) {
  return other.uid != target.uid && other.ns == target.ns && other.service == target.service &&
         other.owner_uid == target.owner_uid && !other.owner_uid.empty() &&
         other.launch_identity == target.launch_identity;
}

}  // namespace

std::string FailureOf(const Instance& instance, const Policy& policy, TimePoint now) {
  if (instance.phase == "Failed" || instance.phase == "Succeeded") {
    return "the pod ended (phase " + instance.phase + ")" +
           (instance.phase_message.empty() ? "" : ": " + instance.phase_message) +
           "; if this repeats, look at " +
           (instance.node.empty() ? "the node" : "node " + instance.node) +
           ": kubectl describe node tells what it lacks";
  }
  if (instance.agent_state == AgentState::kFailed) {
    return "its agent gave up: " + (instance.agent_message.empty()
                                        ? "no reason given; its log says more"
                                        : instance.agent_message);
  }
  if (!instance.crash_looping.empty() && instance.restarts >= policy.max_restarts) {
    return "container " + instance.crash_looping + ", " + std::to_string(instance.restarts) +
           " restarts; its log says why; an edit of the spec has the next one tried at once";
  }
  if (IsWaking(instance) && instance.agent_state != AgentState::kAsleep &&
      now - instance.decided_at >= policy.wake_deadline) {
    const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(policy.wake_deadline);
    return "did not wake within " + std::to_string(seconds.count()) + " s";
  }
  if (!instance.timeline && !instance.ready && instance.started_at &&
      now - *instance.started_at >= policy.start_deadline) {
    const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(policy.start_deadline);
    return "did not serve within " + std::to_string(seconds.count()) +
           " s; the logs of its containers say what it waited for; if it only needs longer, raise "
           "the operator's --start-deadline";
  }
  return "";
}

bool IsServable(const Instance& instance) {
  return CanBeAsked(instance) && instance.weights->servable;
}

bool IsArriving(const Instance& instance) {
  return CanBeAsked(instance) && instance.weights->arriving && !instance.weights->servable;
}

Distance DistanceBetween(const Instance& a, const Instance& b) {
  const auto same = [](const std::string& x, const std::string& y) { return !x.empty() && x == y; };
  if (same(a.node, b.node)) return Distance::kNode;
  // Racks of two zones may have one name.
  if (same(a.rack, b.rack) && a.zone == b.zone) return Distance::kRack;
  if (same(a.zone, b.zone)) return Distance::kZone;
  return Distance::kFarther;
}

bool IsComing(const Instance& instance, api::Fallback fallback, const Policy& policy,
              TimePoint now) {
  if (instance.deleting || instance.leaving || instance.node_lost || IsServable(instance)) {
    return false;
  }
  // A guard that sleeps or is to sleep has none, and takes them from others when it wakes.
  if (instance.begins_without && instance.role == Role::kGuard) return false;
  if (instance.agent_state == AgentState::kAsleep ||
      instance.agent_state == AgentState::kSleeping) {
    return false;
  }
  // It serves, and publishing takes seconds: if nothing came in all that time, nothing will.
  if (instance.timeline) {
    const TimePoint served_at =
        instance.decided_at + std::chrono::microseconds(instance.timeline->total_us);
    return now - served_at < policy.peer_wait;
  }
  if (instance.path == StartPath::kStorage) return true;
  // A target waits for peers itself, unless it may help itself or has its weights already.
  return fallback == api::Fallback::kStorage || instance.agent_state == AgentState::kLoading ||
         instance.agent_state == AgentState::kWarming ||
         instance.agent_state == AgentState::kServing;
}

std::vector<Peer> PeersFor(const Instance& target, const std::vector<const Instance*>& others) {
  struct Candidate {
    const Instance* instance = nullptr;
    Distance distance = Distance::kFarther;
    bool partial = false;
    std::uint64_t hash = 0;

    auto Rank() const { return std::make_tuple(distance, partial, !instance->ready, hash); }
  };
  std::vector<Candidate> sources;
  const std::uint64_t own = HashName(target.name);
  for (const Instance* other : others) {
    if (!SameLaunch(target, *other)) continue;
    if (!IsServable(*other) && !IsArriving(*other)) continue;
    sources.push_back({.instance = other,
                       .distance = DistanceBetween(target, *other),
                       .partial = !IsServable(*other),
                       .hash = Mix(own ^ HashName(other->name))});
  }
  std::sort(sources.begin(), sources.end(),
            [](const Candidate& a, const Candidate& b) { return a.Rank() < b.Rank(); });
  const auto complete = std::find_if(sources.begin(), sources.end(),
                                     [](const Candidate& source) { return !source.partial; });
  if (complete != sources.end()) std::rotate(sources.begin(), complete, complete + 1);
  if (sources.size() > kMaxPeers) sources.resize(kMaxPeers);
  std::vector<Peer> peers;
  for (const Candidate& source : sources) {
    peers.push_back({.pod = source.instance->name,
                     .node = source.instance->node,
                     .address = source.instance->address,
                     .partial = source.partial,
                     .distance = source.distance});
  }
  return peers;
}

std::vector<Sibling> SiblingsOf(const Instance& target,
                                const std::vector<const Instance*>& others) {
  struct Candidate {
    const Instance* instance = nullptr;
    Distance distance = Distance::kFarther;
    std::uint64_t hash = 0;

    auto Rank() const { return std::make_tuple(distance, !instance->ready, hash); }
  };
  std::vector<Candidate> candidates;
  const std::uint64_t own = HashName(target.name);
  for (const Instance* other : others) {
    if (!SameLaunch(target, *other) || other->deleting || other->leaving || other->node.empty() ||
        other->agent_down || other->agent_state == AgentState::kFailed) {
      continue;
    }
    candidates.push_back({.instance = other,
                          .distance = DistanceBetween(target, *other),
                          .hash = Mix(own ^ HashName(other->name))});
  }
  const auto nearer = [](const Candidate& a, const Candidate& b) { return a.Rank() < b.Rank(); };
  if (candidates.size() > kMaxPeers) {
    const auto earlier = [](const Candidate& a, const Candidate& b) {
      return std::tie(a.instance->decided_at, a.instance->name) <
             std::tie(b.instance->decided_at, b.instance->name);
    };
    const auto rest = candidates.begin() + kEarliest;
    std::partial_sort(candidates.begin(), rest, candidates.end(), earlier);
    std::sort(rest, candidates.end(), nearer);
    candidates.resize(kMaxPeers);
  }
  std::sort(candidates.begin(), candidates.end(), nearer);
  std::vector<Sibling> siblings;
  for (const Candidate& candidate : candidates) {
    siblings.push_back({.pod = candidate.instance->name,
                        .address = candidate.instance->address,
                        .decided_at_us = api::ToMicros(candidate.instance->decided_at)});
  }
  return siblings;
}

std::vector<Keeper> KeepersOf(const std::vector<const Instance*>& instances) {
  std::vector<std::pair<std::uint64_t, const Instance*>> found;
  for (const Instance* instance : instances) {
    if (!instance->keeps_caches || instance->owner_uid.empty() || instance->address.empty() ||
        instance->node_lost || instance->agent_down || instance->phase == "Failed" ||
        instance->phase == "Succeeded" || !instance->agent_state) {
      continue;
    }
    found.emplace_back(HashName(instance->name), instance);
  }
  const auto before = [](const auto& a, const auto& b) {
    return std::tie(a.first, a.second->name) < std::tie(b.first, b.second->name);
  };
  if (found.size() > kMaxKeepers) {
    std::nth_element(found.begin(), found.begin() + kMaxKeepers, found.end(), before);
    found.resize(kMaxKeepers);
  }
  std::sort(found.begin(), found.end(), before);
  std::vector<Keeper> keepers;
  for (const auto& [hash, instance] : found) {
    keepers.push_back({.pod = instance->name,
                       .node = instance->node,
                       .address = instance->address,
                       .leaving = instance->deleting || instance->leaving.has_value() ||
                                  instance->agent_state == AgentState::kFailed});
  }
  return keepers;
}

bool IsExpecting(const Instance& target, const std::vector<const Instance*>& others,
                 const Policy& policy, TimePoint now) {
  const auto earlier = [&](const Instance& other) {
    return std::tie(other.decided_at, other.name) < std::tie(target.decided_at, target.name);
  };
  return std::any_of(others.begin(), others.end(), [&](const Instance* other) {
    if (!SameLaunch(target, *other) || other->deleting) return false;
    if (!FailureOf(*other, policy, now).empty()) return false;
    // Whether it may fall back is not known here: it has not yet, or it would be coming anyway.
    return IsServable(*other) || IsArriving(*other) ||
           IsComing(*other, api::Fallback::kNone, policy, now) ||
           (earlier(*other) && IsComing(*other, api::Fallback::kStorage, policy, now));
  });
}

}  // namespace rouse::plan
