// The weight store's part for peers: digests, and what is offered when.

#include "agent/memory/copy_engine.h"
#include "agent/server/rank_name.h"
#include "agent/server/weights.h"

namespace rouse::agent {
namespace {

/// For one chunk: nothing but the CPU can keep it waiting.
constexpr std::chrono::seconds kDigestDeadline{60};

}  // namespace

Result<WeightStore::Work> WeightStore::Prepare(const std::stop_token& stop) {
  ROUSE_ASSIGN_OR_RETURN(const bool digested, DigestOne(stop));
  if (digested) return Work::kDigested;
  publisher_->Expire();
  return OfferAll();
}

Result<bool> WeightStore::DigestOne(const std::stop_token& stop) {
  std::uint32_t number = 0;
  std::uint64_t generation = 0;
  std::uint64_t chunk_bytes = 0;
  std::shared_ptr<memory::Arena> arena;
  {
    const std::scoped_lock lock(mutex_);
    for (const auto& [candidate, rank] : ranks_) {
      if (rank.stage != Stage::kPublished) continue;
      number = candidate;
      generation = rank.generation;
      chunk_bytes = rank.manifest.chunk_bytes;
      arena = rank.arena;
      break;
    }
  }
  if (arena == nullptr) return false;
  const auto engine = arena->memory().NewCopyEngine(options_.digest_threads);
  if (!engine.ok()) return engine.status().WithContext("digest " + RankName(number));
  auto digests = memory::DigestChunks(
      **engine, *arena,
      {.chunk_bytes = chunk_bytes, .progress_deadline = kDigestDeadline, .stop = stop});
  if (!digests.ok()) return digests.status().WithContext("digest " + RankName(number));
  const std::scoped_lock lock(mutex_);
  Rank* const held = Find(number);
  if (held != nullptr && held->generation == generation && held->stage == Stage::kPublished) {
    held->manifest.chunk_digests = *std::move(digests);
    held->stage = Stage::kReady;
  }
  return true;
}

Result<WeightStore::Work> WeightStore::OfferAll() {
  std::map<std::uint32_t, Rank> ranks;
  std::uint64_t generation = 0;
  Offered offers = Offered::kComplete;
  {
    std::unique_lock lock(mutex_);
    const bool all_ready = AllReady(false);
    if (withdrawn_ || offered_ == Offered::kComplete || HasPlaceholdersLocked()) return Work::kNone;
    if (resting_ && resting_->sleeps()) return Work::kNone;
    generation = generation_;
    if (offered_ == Offered::kArriving) {
      lock.unlock();
      return all_ready ? OfferComplete(generation) : Work::kNone;
    }
    if (!all_ready) offers = Offered::kArriving;
    if (!AllReady(true)) return Work::kNone;
    ranks = ranks_;
  }
  // Registration may take seconds, and engines ask the store meanwhile.
  for (const auto& [number, rank] : ranks) {
    const Status status = publisher_->Publish(
        rank.arena, rank.manifest, rank.stage == Stage::kArriving ? rank.available : nullptr);
    if (!status.ok()) {
      publisher_->Withdraw();
      return status.WithContext("offer " + RankName(number) + " to peers");
    }
  }
  const std::scoped_lock lock(mutex_);
  if (withdrawn_ || generation != generation_) {
    publisher_->Withdraw();  // An engine has begun anew: these are not the weights any more.
  } else {
    offered_ = offers;
  }
  return offers == Offered::kComplete ? Work::kOffered : Work::kOfferedArriving;
}

// Only one thread offers, so what is published is of this generation, or withdrawn.
Result<WeightStore::Work> WeightStore::OfferComplete(std::uint64_t generation) {
  publisher_->Complete();
  const std::scoped_lock lock(mutex_);
  if (generation == generation_ && offered_ == Offered::kArriving) offered_ = Offered::kComplete;
  return Work::kOffered;
}

Result<OpenResponse> WeightStore::Open(const std::string& requester, bool partial) {
  std::uint64_t generation = 0;
  {
    const std::scoped_lock lock(mutex_);
    if (withdrawn_) return Unavailable("this agent is ending: ask another peer");
    if (offered_ == Offered::kNothing || (offered_ == Offered::kArriving && !partial)) {
      return Unavailable("the weights of this instance are not complete yet: ask again");
    }
    generation = generation_;
  }
  // Without the lock: a source process that died is started again first, and engines ask meanwhile.
  ROUSE_ASSIGN_OR_RETURN(OpenResponse opened, publisher_->Open(requester, partial));
  {
    const std::scoped_lock lock(mutex_);
    if (offered_ != Offered::kNothing && generation == generation_) return opened;
  }
  // Perhaps not all ranks of one set.
  static_cast<void>(publisher_->Close(opened.lease).ok());
  return Unavailable("the weights of this instance have just changed: ask again");
}

void WeightStore::Withdraw() {
  const std::scoped_lock lock(mutex_);
  withdrawn_ = true;
  WithdrawLocked();
}

void WeightStore::WithdrawLocked() {
  if (offered_ == Offered::kNothing) return;
  publisher_->Withdraw();
  offered_ = Offered::kNothing;
}

}  // namespace rouse::agent
