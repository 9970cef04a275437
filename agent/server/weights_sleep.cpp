// The weight store's part in sleep and wake.

#include <chrono>
#include <thread>

#include "agent/server/rank_name.h"
#include "agent/server/weights.h"

namespace rouse::agent {
namespace {

using Clock = std::chrono::steady_clock;

/// Only what is cheap to ask for is polled, and on the way to sleep only.
constexpr std::chrono::milliseconds kLookAgain{5};

}  // namespace

Status WeightStore::Complete() const {
  const std::scoped_lock lock(mutex_);
  if (resting_) return FailedPrecondition("its weights have been given up");
  if (!AllReady(false)) return Unavailable("its weights are not complete, or not digested yet");
  return {};
}

Status WeightStore::BeginSleep() {
  const std::scoped_lock lock(mutex_);
  if (!AllReady(false)) return Unavailable("its weights are not complete any more");
  std::map<std::uint32_t, WeightManifest> manifests;
  for (const auto& [number, rank] : ranks_) manifests.emplace(number, rank.manifest);
  resting_.emplace(std::move(manifests));
  WithdrawLocked();
  ++generation_;  // What is being offered at this moment is not.
  why_none_ = "this instance sleeps";
  return {};
}

bool WeightStore::EndLeases(std::chrono::milliseconds longest, const std::stop_token& stop) {
  const auto until = Clock::now() + longest;
  while (publisher_->lease_count() > 0 && Clock::now() < until && !stop.stop_requested()) {
    std::this_thread::sleep_for(kLookAgain);
  }
  return publisher_->Revoke() == 0;
}

Result<bool> WeightStore::OnReleased(std::uint32_t rank) {
  const std::scoped_lock lock(mutex_);
  if (!resting_ || !resting_->sleeps()) {
    return FailedPrecondition(RankName(rank) + " was not told to sleep");
  }
  ROUSE_RETURN_IF_ERROR(resting_->OnReleased(rank));
  return resting_->all_released();
}

Status WeightStore::Free(std::chrono::milliseconds longest) {
  std::vector<std::weak_ptr<memory::Arena>> arenas;
  {
    const std::scoped_lock lock(mutex_);
    if (!resting_ || !resting_->all_released()) {
      return Internal("weights are still mapped by their engine");
    }
    for (const auto& [number, rank] : ranks_) arenas.emplace_back(rank.arena);
    ranks_.clear();
    ++generation_;
  }
  // A digest or an offer that was under way holds an arena for a moment longer.
  const auto until = Clock::now() + longest;
  const auto in_use = [&] {
    for (const auto& arena : arenas) {
      if (!arena.expired()) return true;
    }
    return false;
  };
  while (in_use()) {
    if (Clock::now() >= until) return Internal("the weights' memory is still in use by the agent");
    std::this_thread::sleep_for(kLookAgain);
  }
  publisher_->Expire();  // It holds slabs for peers until it looks.
  return {};
}

void WeightStore::BeginWake() {
  const std::scoped_lock lock(mutex_);
  if (resting_) resting_->Wake();
}

void WeightStore::EndRest() {
  const std::scoped_lock lock(mutex_);
  resting_.reset();
}

Status WeightStore::Fits(const WeightManifest& manifest, std::size_t ranks) const {
  const std::scoped_lock lock(mutex_);
  return resting_ ? resting_->Fits(manifest, ranks) : Status();
}

Result<std::optional<ArenaShape>> WeightStore::NextArena(std::uint32_t rank) const {
  const std::scoped_lock lock(mutex_);
  if (const Rank* const held = Find(rank); held != nullptr) {
    if (held->arena == nullptr) return std::optional<ArenaShape>();
    return std::optional(ShapeOf(*held->arena));
  }
  if (resting_ && resting_->Expects(rank)) return std::optional<ArenaShape>();
  return Unavailable("no weights will come for " + RankName(rank) + ": " + why_none_);
}

}  // namespace rouse::agent
