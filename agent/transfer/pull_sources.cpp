#include "agent/transfer/pull_sources.h"

#include <utility>

namespace rouse::transfer {

PullSources::Id PullSources::Add(OpenedPeer peer) {
  const std::scoped_lock lock(mutex_);
  const Id id = next_++;
  peers_[id] = std::make_shared<const OpenedPeer>(std::move(peer));
  ++changes_;
  if (on_change_) on_change_();
  return id;
}

void PullSources::Remove(Id id) {
  const std::scoped_lock lock(mutex_);
  if (peers_.erase(id) == 0) return;
  ++changes_;
  if (on_change_) on_change_();
}

std::map<PullSources::Id, std::shared_ptr<const OpenedPeer>> PullSources::Now() const {
  const std::scoped_lock lock(mutex_);
  return peers_;
}

std::uint64_t PullSources::changes() const {
  const std::scoped_lock lock(mutex_);
  return changes_;
}

std::size_t PullSources::count() const {
  const std::scoped_lock lock(mutex_);
  return peers_.size();
}

void PullSources::OnChange(std::function<void()> call) {
  const std::scoped_lock lock(mutex_);
  on_change_ = std::move(call);
}

}  // namespace rouse::transfer
