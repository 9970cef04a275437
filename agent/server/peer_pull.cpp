#include "agent/server/peer_pull.h"

#include <algorithm>

#include "agent/server/peer_attempt.h"
#include "common/log.h"
#include "common/stoppable_sleep.h"

namespace rouse::agent {
namespace {

using Clock = std::chrono::steady_clock;

/// The list of peers may change at any time, so no wait is longer than this.
constexpr std::chrono::milliseconds kLookAgain{100};

}  // namespace

Status PullFromPeers(WeightStore& store, const PeerPullSettings& settings,
                     const PeerPullHooks& hooks, const std::stop_token& stop) {
  PeerPicker picker(settings.picker, Clock::now());
  while (!stop.stop_requested()) {
    const auto choice = picker.Next(hooks.peers(), Clock::now(), hooks.expecting());
    if (const auto* wait = std::get_if<PeerPicker::WaitUntil>(&choice)) {
      SleepUntil(std::min(wait->at, Clock::now() + kLookAgain), stop);
      continue;
    }
    if (const auto* give_up = std::get_if<PeerPicker::GiveUp>(&choice)) {
      store.Abandon(give_up->reason);
      hooks.on_progress();
      return Unavailable(give_up->reason);
    }
    const Peer& peer = std::get<PeerPicker::Take>(choice).peer;
    Attempt attempt(store, settings, hooks, picker, stop);
    const AttemptEnd outcome = attempt.Run(peer);
    if (outcome.status.ok()) return Status();
    if (stop.stop_requested()) break;
    if (outcome.hopeless) {
      store.Abandon(outcome.status.message());
      hooks.on_progress();
      return outcome.status;
    }
    const std::vector<Peer> held = attempt.held();
    log::Warning("weights not pulled", {{"peer", peer.pod},
                                        {"address", peer.address},
                                        {"error", outcome.status.ToString()},
                                        {"otherPeers", held.size()}});
    for (const Peer& other : held) picker.OnFailed(other, outcome.status, false, Clock::now());
    if (!attempt.opened()) picker.OnFailed(peer, outcome.status, false, Clock::now());
  }
  return Status(StatusCode::kCancelled, "pull stopped");
}

}  // namespace rouse::agent
