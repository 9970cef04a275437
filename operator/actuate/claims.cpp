#include "operator/actuate/claims.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>

#include "operator/api/names.h"

namespace rouse::actuate {
namespace {

/// Claims under way at once: each waits for an agent, then for the API server.
constexpr std::size_t kClaimThreads = 16;

/// Others may write to a guard's pod between any two writes of a claim.
constexpr int kClaimTries = 5;

// Calls `each` with all numbers below `count`, on threads of its own.
template <typename Each>
void SideBySide(std::size_t count, const Each& each) {
  std::atomic<std::size_t> next = 0;
  std::vector<std::jthread> threads;
  for (std::size_t i = 0; i < std::min(count, kClaimThreads); ++i) {
    threads.emplace_back([&] {
      pthread_setname_np(pthread_self(), "claim");
      for (std::size_t mine = next++; mine < count; mine = next++) each(mine);
    });
  }
}

Status TellToWake(const plan::ClaimGuard& action, const AgentName& agent, Agents& agents,
                  Outcome& out) {
  const auto begun = std::chrono::steady_clock::now();
  const auto told = agents.TellRole(agent, {.role = Role::kActive,
                                            .peers = action.peers,
                                            .decided_at_us = api::ToMicros(action.decided_at)});
  if (told.ok()) return {};
  const auto took = std::chrono::steady_clock::now() - begun;
  out.failed_wakes.push_back(std::chrono::duration<double>(took).count());
  return told.status();
}

// Its agent says at once that it wakes, and the kubelet writes when it likes: what must not have
// changed is that this is a guard, and this one.
Status WriteClaim(const plan::ClaimGuard& action, const PodWriter& pods) {
  Json annotations = {
      {api::kAnnotationDecidedAtUs, std::to_string(api::ToMicros(action.decided_at))},
      {api::kAnnotationPathReason, action.reason},
      {api::kAnnotationActivePorts, nullptr}};  // All of them.
  if (action.wake) annotations[api::kAnnotationPath] = ToString(StartPath::kWake);
  std::string version = action.resource_version;
  for (int tries = 1;; ++tries) {
    const auto claimed =
        pods.Patch(action.pod, {{"resourceVersion", version},
                                {"labels", {{api::kLabelRole, ToString(Role::kActive)}}},
                                {"annotations", annotations}});
    if (claimed.status().code() != StatusCode::kConflict || tries == kClaimTries) {
      return claimed.status();
    }
    const auto there = pods.Get(action.pod);
    if (!there.ok()) return there.status();
    const auto guard = plan::InstanceFromPod(*there);
    if (!guard.ok() || guard->uid != action.uid || guard->role != Role::kGuard || guard->deleting ||
        guard->leaving) {
      return claimed.status();
    }
    version = guard->resource_version;
  }
}

void NotWoken(const plan::ClaimGuard& action, const PodWriter& pods, const Status& why,
              Outcome& out) {
  const plan::FailedWakes failed{
      .count = action.failed_wakes.count + 1, .at = action.decided_at, .reason = why.message()};
  // Whoever else has written meanwhile (its agent, the kubelet) does not own the role.
  const auto marked = pods.Patch(action.pod, MarkedAsGuard(action.uid, failed));
  out.notes.push_back(
      {true, "GuardNotWoken", "ClaimGuard", action.pod + " could not be woken: " + why.message()});
  if (!marked.ok()) out.errors.push_back(marked.status().ToString());
  out.replan = marked.ok();
}

void Claim(const plan::ClaimGuard& action, const PodWriter& pods, const Status& told,
           Outcome& out) {
  if (!told.ok()) return NotWoken(action, pods, told, out);
  const Status claimed = action.again ? Status() : WriteClaim(action, pods);
  if (!claimed.ok()) return out.Refused(claimed);
  out.notes.push_back(
      {false, action.wake ? "GuardWoken" : "GuardTaken", "ClaimGuard",
       action.pod + (action.wake ? " wakes (" : " is a replica (") + action.reason + ")"});
}

}  // namespace

Json MarkedAsGuard(const std::string& uid, const plan::FailedWakes& failed) {
  return {{"uid", uid},
          {"labels", {{api::kLabelRole, ToString(Role::kGuard)}}},
          {"annotations",
           {{api::kAnnotationFailedWakes, json::Canonical(ToJson(failed))},
            {api::kAnnotationActivePorts, ""}}}};
}

Outcome ClaimGuards(const std::vector<const plan::ClaimGuard*>& claims, const PodWriter& pods,
                    Agents& agents, const std::function<Status()>& confirm) {
  Outcome all;
  if (std::any_of(claims.begin(), claims.end(), [](auto* claim) { return claim->wake; })) {
    if (const Status leads = confirm(); !leads.ok()) {
      all.errors.push_back(
          leads.WithContext("no guard is woken by who may not lead any more").ToString());
      return all;
    }
  }
  // Each thread writes to places of its own.
  std::vector<Outcome> outcomes(claims.size());
  std::vector<Status> told(claims.size());
  SideBySide(claims.size(), [&](std::size_t i) {
    if (claims[i]->wake) {
      const AgentName agent = AgentOf(pods.Name(claims[i]->pod).ns, *claims[i]);
      told[i] = TellToWake(*claims[i], agent, agents, outcomes[i]);
    }
  });
  SideBySide(claims.size(), [&](std::size_t i) { Claim(*claims[i], pods, told[i], outcomes[i]); });
  for (Outcome& one : outcomes) all.Add(std::move(one));
  return all;
}

}  // namespace rouse::actuate
