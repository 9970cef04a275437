// The weight store's part in a pull: where peers' weights are put.

#include "agent/server/rank_name.h"
#include "agent/server/weights.h"

namespace rouse::agent {
namespace {

/// A GPU's memory is not read over the network.
Result<ucx::RegisteredMemory> NotRegistered(std::shared_ptr<ucx::Context>, std::span<std::byte>) {
  return FailedPrecondition("GPU memory is not registered with UCX");
}

}  // namespace

Status WeightStore::CheckGpus() const {
  if (options_.gpus == nullptr) {
    return FailedPrecondition(
        "this agent keeps weights in host memory only (--gpu-weights, --node-folder)");
  }
  const Status status = options_.gpus->Check();
  return status.ok() ? status : FailedPrecondition("no GPU here: " + status.message());
}

Status WeightStore::Announce(const WeightManifest& manifest, std::uint32_t ranks,
                             const std::string& origin) {
  const std::scoped_lock lock(mutex_);
  const Rank* const held = Find(manifest.rank);
  if (held != nullptr && held->stage != Stage::kArriving) {
    return FailedPrecondition(RankName(manifest.rank) + " has weights already: " + held->origin);
  }
  if (held == nullptr || held->manifest != manifest) Expect(manifest, ranks, origin, {});
  return Status();
}

Result<std::shared_ptr<const memory::Memory>> WeightStore::AwaitGpu(std::uint32_t rank,
                                                                    const std::stop_token& stop) {
  std::string gpu;
  {
    std::unique_lock lock(mutex_);
    if (!engines_changed_.wait(lock, stop, [&] { return engines_.contains(rank); })) {
      return Status(StatusCode::kCancelled, "no engine of " + RankName(rank) + " came");
    }
    gpu = engines_.at(rank);
  }
  if (gpu.empty()) {
    return FailedPrecondition("the engine of " + RankName(rank) +
                              " does not take weights in GPU memory");
  }
  return options_.gpus->MemoryOf(gpu);
}

Result<WeightStore::Arriving> WeightStore::Arrive(
    const WeightManifest& manifest, std::uint32_t ranks, const std::string& origin,
    const std::shared_ptr<const memory::Memory>& memory) {
  Arriving arriving;
  {
    const std::scoped_lock lock(mutex_);
    const Rank* const held = Find(manifest.rank);
    if (held != nullptr && held->stage != Stage::kArriving) {
      return FailedPrecondition(RankName(manifest.rank) + " has weights already: " + held->origin);
    }
    const bool same_memory =
        held != nullptr && held->arena != nullptr && held->arena->memory().gpu() == memory->gpu();
    // On a GPU it is faster to begin anew than to leave out what is there.
    if (same_memory && held->manifest == manifest && memory->on_host()) {
      return Arriving{held->registered, held->available};
    }
    // Peers may be reading what was offered.
    if (same_memory && held->arena->bytes() == manifest.arena_bytes &&
        offered_ == Offered::kNothing) {
      arriving.arena = held->registered;
    }
  }
  if (arriving.arena == nullptr) {
    auto created =
        memory::Arena::Create(OptionsOf(manifest.rank, manifest.arena_bytes, memory, true));
    if (!created.ok()) {
      return created.status().WithContext("create arena of " + RankName(manifest.rank));
    }
    const std::shared_ptr<memory::Arena> arena = *std::move(created);
    ROUSE_RETURN_IF_ERROR(publisher_->Hold(arena));
    ROUSE_RETURN_IF_ERROR(arena->Seal());
    arriving.arena = memory->on_host()
                         ? transfer::RegisteredArena::Create(context_, arena)
                         : transfer::RegisteredArena::Create(context_, arena, NotRegistered);
  }
  ROUSE_ASSIGN_OR_RETURN(arriving.available,
                         transfer::Availability::Create(manifest.chunk_digests.size()));
  const std::scoped_lock lock(mutex_);
  Rank* const held = Find(manifest.rank);
  if (held != nullptr && held->stage != Stage::kArriving) {
    return FailedPrecondition("the engine has taken " + RankName(manifest.rank) +
                              " into its own hands meanwhile");
  }
  Expect(manifest, ranks, origin, arriving);
  return arriving;
}

// Requires mutex_.
void WeightStore::Expect(const WeightManifest& manifest, std::uint32_t ranks,
                         const std::string& origin, const Arriving& arriving) {
  WithdrawLocked();
  expected_ranks_ = ranks;
  Rank& rank = ranks_[manifest.rank];
  rank.stage = Stage::kArriving;
  rank.arena = arriving.arena != nullptr ? arriving.arena->shared_arena() : nullptr;
  rank.registered = arriving.arena;
  rank.available = arriving.available;
  rank.manifest = manifest;
  rank.identity = manifest.identity;
  rank.origin = origin;
  rank.from_peer = true;
  rank.placeholders = false;
  rank.generation = ++generation_;
}

bool WeightStore::Has(const WeightManifest& manifest) const {
  const std::scoped_lock lock(mutex_);
  const Rank* const held = Find(manifest.rank);
  return held != nullptr && held->stage == Stage::kReady && held->manifest == manifest;
}

std::optional<Identity> WeightStore::IdentityOf(std::uint32_t rank) const {
  const std::scoped_lock lock(mutex_);
  const Rank* const held = Find(rank);
  return held == nullptr ? std::nullopt : std::optional(held->identity);
}

Status WeightStore::Arrived(std::uint32_t rank,
                            const std::shared_ptr<transfer::RegisteredArena>& arena,
                            const std::string& origin) {
  const std::scoped_lock lock(mutex_);
  Rank* const held = Find(rank);
  if (held == nullptr || held->registered != arena || held->stage != Stage::kArriving) {
    return FailedPrecondition("the engine has taken " + RankName(rank) +
                              " into its own hands meanwhile");
  }
  held->stage = Stage::kReady;
  held->registered.reset();
  held->origin = origin;
  bytes_.peer += held->arena->bytes();
  return Status();
}

void WeightStore::Abandon(const std::string& why) {
  const std::scoped_lock lock(mutex_);
  why_none_ = why;
  if (resting_) resting_->Lose();
  const auto gone = std::erase_if(
      ranks_, [](const auto& entry) { return entry.second.stage == Stage::kArriving; });
  if (gone == 0) return;
  WithdrawLocked();
  ++generation_;
}

}  // namespace rouse::agent
