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
  const auto same = [&](const Target& other) { return other.lease == lease; };
  if (running_) {
    const auto seat = std::find_if(targets_.begin(), targets_.end(), same);
    if (seat == targets_.end()) return JoinPull{"a broadcast to others is under way"};
    return JoinSeat{round_, static_cast<int>(seat - targets_.begin()) + 1,
                    static_cast<int>(targets_.size()) + 1};
  }
  std::erase_if(targets_, [&](const Target& other) {
    return !same(other) && now - other.heard > options_.silence;
  });
  if (const auto known = std::find_if(targets_.begin(), targets_.end(), same);
      known != targets_.end()) {
    known->heard = now;
  } else {
    if (std::string refusal = Refusal(target); !refusal.empty()) return JoinPull{refusal};
    if (targets_.empty()) opened_ = now;
    targets_.push_back({lease, target, now});
  }
  if (now - opened_ < options_.window) return JoinWait{options_.ask_again};
  return Decide(lease, now);
}

// Why `target` need not wait for this batch; empty when it shall.
std::string BroadcastRoster::Refusal(const BroadcastMember& target) const {
  const BroadcastBatch batch = Batch();
  if (batch.targets.size() >= options_.max_targets) return "the batch is full";
  if (std::string misfit = Misfit(batch, target); !misfit.empty()) return misfit;
  // The most that a batch could be, all of them with a GPU of their own.
  BroadcastBatch full = batch;
  full.targets.clear();
  for (std::size_t i = 0; i < options_.max_targets; ++i) {
    full.targets.push_back({source_.domain, std::to_string(i)});
  }
  const TransportChoice best = ChooseTransport(full, options_.rates);
  return best.broadcast ? "" : best.reason;
}

BroadcastRoster::Answer BroadcastRoster::Decide(const std::string& lease, TimePoint now) {
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
