#include "operator/plan/choose_path.h"

#include <algorithm>

#include "operator/plan/source.h"

namespace rouse::plan {
namespace {

bool EarlierStart(const Instance* a, const Instance* b) {
  if (a->decided_at != b->decided_at) return a->decided_at < b->decided_at;
  return a->name < b->name;
}

PathChoice FromStorage(int start_now, const std::string& no_wake, const std::string& why_no_peer) {
  return {.path = StartPath::kStorage,
          .reason = "Wake: " + no_wake + "; Peer: " + why_no_peer,
          .start_now = start_now,
          .waiting = 0,
          .waiting_for = "",
          .waiting_until = std::nullopt};
}

}  // namespace

PathChoice ChoosePath(const api::Spec& spec, const std::string& launch_identity,
                      const std::vector<const Instance*>& working, int missing,
                      const std::string& no_wake, const Policy& policy, TimePoint now) {
  const api::FastStart& fast = spec.fast_start;
  if (fast.weights_source == api::WeightSource::kStorage) {
    return FromStorage(missing, no_wake, "weights.source is Storage");
  }
  std::vector<const Instance*> coming;
  bool any_equal = false;
  for (const Instance* instance : working) {
    if (instance->launch_identity != launch_identity) continue;
    any_equal = true;
    if (IsServable(*instance)) {
      return {.path = StartPath::kPeer,
              .reason = "Wake: " + no_wake,
              .start_now = missing,
              .waiting = 0,
              .waiting_for = "",
              .waiting_until = std::nullopt};
    }
    if (IsComing(*instance, fast.weights_fallback, policy, now)) coming.push_back(instance);
  }
  if (coming.empty()) {
    PathChoice choice = FromStorage(
        1, no_wake,
        any_equal         ? "no instance with this launch identity has weights or can come by them"
        : working.empty() ? "no other instance runs"
                          : "no instance with this launch identity runs");
    choice.waiting = missing - 1;  // For the one that starts now; the next run knows its name.
    return choice;
  }
  const Instance* first = *std::min_element(coming.begin(), coming.end(), EarlierStart);
  PathChoice wait{.path = StartPath::kPeer,
                  .reason = "Wake: " + no_wake,
                  .start_now = 0,
                  .waiting = missing,
                  .waiting_for = first->name,
                  .waiting_until = std::nullopt};
  if (fast.weights_fallback == api::Fallback::kNone) return wait;
  const TimePoint until = first->decided_at + policy.peer_wait;
  if (now >= until) {
    const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(policy.peer_wait);
    return FromStorage(missing, no_wake,
                       "no weights to pull yet, " + first->name + " was waited for " +
                           std::to_string(seconds.count()) + " s");
  }
  wait.waiting_until = until;
  return wait;
}

}  // namespace rouse::plan
