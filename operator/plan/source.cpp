#include "operator/plan/source.h"

#include <algorithm>
#include <tuple>

namespace rouse::plan {
namespace {

constexpr std::size_t kMaxPeers = 64;  // More than any agent tries; bounds the answer.

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
  return !instance.deleting && !instance.agent_down && instance.weights &&
         instance.weights->servable && !instance.address.empty() &&
         instance.agent_state != AgentState::kFailed;
}

bool IsComing(const Instance& instance, api::Fallback fallback, const Policy& policy,
              TimePoint now) {
  if (instance.deleting || IsServable(instance)) return false;
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
  std::vector<const Instance*> sources;
  for (const Instance* other : others) {
    if (other->uid != target.uid && other->ns == target.ns && other->service == target.service &&
        other->owner_uid == target.owner_uid && !other->owner_uid.empty() &&
        other->launch_identity == target.launch_identity && IsServable(*other)) {
      sources.push_back(other);
    }
  }
  std::sort(sources.begin(), sources.end(), [&](const Instance* a, const Instance* b) {
    const auto rank = [&](const Instance* i) {
      return std::make_tuple(target.node.empty() || i->node != target.node, !i->ready,
                             std::cref(i->name));
    };
    return rank(a) < rank(b);
  });
  if (sources.size() > kMaxPeers) sources.resize(kMaxPeers);
  std::vector<Peer> peers;
  for (const Instance* source : sources) {
    peers.push_back({.pod = source->name, .node = source->node, .address = source->address});
  }
  return peers;
}

}  // namespace rouse::plan
