#include "agent/transfer/broadcast_roster.h"

#include <algorithm>
#include <utility>

namespace rouse::transfer {

BroadcastRoster::BroadcastRoster(BroadcastMember source, std::uint64_t bytes, bool library,
                                 const RosterOptions& options)
    : source_(std::move(source)), bytes_(bytes), library_(library), options_(options) {}

BroadcastBatch BroadcastRoster::Batch() const {
  BroadcastBatch batch{.source = source_, .targets = {}, .bytes = bytes_, .library = library_};
  for (const Target& target : targets_) batch.targets.push_back(target.member);
  return batch;
}

BroadcastRoster::Answer BroadcastRoster::Ask(const std::string& lease,
                                             const BroadcastMember& target, TimePoint now) {
  if (pulling_.erase(lease) > 0) return JoinPull{why_};
  const auto known = std::find_if(targets_.begin(), targets_.end(),
                                  [&](const Target& other) { return other.lease == lease; });
  if (running_) {
    if (known == targets_.end()) return JoinPull{"a broadcast to others is under way"};
    return JoinSeat{round_, static_cast<int>(known - targets_.begin()) + 1,
                    static_cast<int>(targets_.size()) + 1};
  }
  if (known != targets_.end()) {
    known->heard = now;
  } else {
    // The most that a batch could be, all of them with a GPU of their own.
    BroadcastBatch full{.source = source_, .targets = {}, .bytes = bytes_, .library = library_};
    for (std::size_t i = 0; i < options_.max_targets; ++i) {
      full.targets.push_back({source_.domain, std::to_string(i)});
    }
    if (const TransportChoice best = ChooseTransport(full, options_.rates); !best.broadcast) {
      return JoinPull{best.reason};
    }
    if (targets_.size() >= options_.max_targets) return JoinPull{"the batch is full"};
    if (targets_.empty()) opened_ = now;
    targets_.push_back({lease, target, now});
  }
  if (now - opened_ < options_.window) return JoinWait{options_.ask_again};
  return Decide(lease, now);
}

BroadcastRoster::Answer BroadcastRoster::Decide(const std::string& lease, TimePoint now) {
  std::erase_if(targets_, [&](const Target& target) {
    return target.lease != lease && now - target.heard > options_.silence;
  });
  const TransportChoice choice = ChooseTransport(Batch(), options_.rates);
  if (!choice.broadcast) {
    TellToPull(choice.reason, lease);
    return JoinPull{choice.reason};
  }
  running_ = true;
  ++round_;
  return Ask(lease, {}, now);
}

void BroadcastRoster::EndRound(const std::string& reason) {
  if (!running_) return;
  running_ = false;
  TellToPull(reason, "");
}

void BroadcastRoster::TellToPull(const std::string& reason, const std::string& but) {
  pulling_.clear();
  why_ = reason;
  for (const Target& target : targets_) {
    if (target.lease != but) pulling_.insert(target.lease);
  }
  targets_.clear();
}

}  // namespace rouse::transfer
