#include "agent/startup/peer_picker.h"

#include <algorithm>

namespace rouse::agent {

PeerPicker::Choice PeerPicker::Next(const std::vector<Peer>& peers, TimePoint now, bool expecting) {
  if (failed_transfers_ >= limits_.max_failed_transfers) {
    return GiveUp{std::to_string(failed_transfers_) + " transfers failed: " + Reasons()};
  }
  const Peer* best = nullptr;
  int best_failures = 0;
  std::size_t refused = 0;
  TimePoint soonest = now + limits_.longest_pause;
  for (const Peer& peer : peers) {
    const auto found = records_.find(peer.address);
    if (found != records_.end() && found->second.refused) {
      ++refused;
      continue;
    }
    if (found != records_.end() && found->second.not_before > now) {
      soonest = std::min(soonest, found->second.not_before);
      continue;
    }
    const int failures = found == records_.end() ? 0 : found->second.failures;
    if (best == nullptr || failures < best_failures) {
      best = &peer;
      best_failures = failures;
    }
  }
  const bool all_refused = !peers.empty() && refused == peers.size();
  if (!all_refused) all_refused_since_.reset();
  if (all_refused && !all_refused_since_) all_refused_since_ = now;

  const bool alone = peers.empty() && !expecting;
  if (!alone) alone_since_.reset();
  if (alone && !alone_since_) alone_since_ = now;

  TimePoint end = idle_since_ + limits_.deadline;
  if (alone_since_ && *alone_since_ + limits_.alone_deadline <= std::min(now, end)) {
    return GiveUp{"no other instance has the weights or may come to have them" +
                  (records_.empty() ? "" : "; " + Reasons())};
  }
  if (all_refused_since_) end = std::min(end, *all_refused_since_ + limits_.refused_deadline);
  if (now >= end) {
    return GiveUp{records_.empty() ? "the operator named no peer that serves the weights within " +
                                         std::to_string(limits_.deadline.count() / 1000) + " s"
                                   : Reasons()};
  }
  if (best != nullptr) return Take{*best};
  return WaitUntil{std::min(soonest, end)};
}

void PeerPicker::OnFailed(const Peer& peer, const Status& why, bool transferring, TimePoint now) {
  Record& record = records_[peer.address];
  record.pod = peer.pod;
  record.error = why.ToString();
  record.refused =
      why.code() == StatusCode::kFailedPrecondition || why.code() == StatusCode::kInvalidArgument;
  const auto pause = limits_.first_pause * (1 << std::min(record.failures, 10));
  record.not_before = now + std::min<std::chrono::milliseconds>(pause, limits_.longest_pause);
  ++record.failures;
  if (transferring) {
    ++failed_transfers_;
    idle_since_ = now;
    alone_since_.reset();
  }
}

void PeerPicker::OnProgress(TimePoint now) {
  failed_transfers_ = 0;
  idle_since_ = now;
}

std::string PeerPicker::Reasons() const {
  std::string all;
  for (const auto& [address, record] : records_) {
    all += (all.empty() ? "" : "; ") + record.pod + " (" + address + "): " + record.error;
  }
  return all;
}

}  // namespace rouse::agent
