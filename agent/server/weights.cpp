#include "agent/server/weights.h"

#include <algorithm>
#include <utility>

#include "agent/memory/copy_engine.h"
#include "common/log.h"
#include "common/round_up.h"

namespace rouse::agent {
namespace {

/// For one chunk: nothing but the CPU can keep it waiting.
constexpr std::chrono::seconds kDigestDeadline{60};

constexpr std::string_view kPublishedHere = "published by this pod's engine";

std::string RankName(std::uint32_t rank) {
  return "rank " + std::to_string(rank);
}

ArenaShape ShapeOf(const memory::Arena& arena) {
  return {
      .arena_bytes = arena.bytes(), .slab_bytes = arena.SlabBytes(), .gpu = arena.memory().gpu()};
}

// Only agents of this node can read a GPU's memory, and they read it when it is complete.
bool OfferedWhileArriving(const memory::Arena* arena) {
  return arena != nullptr && arena->memory().on_host();
}

/// A GPU's memory is not read over the network.
Result<ucx::RegisteredMemory> NotRegistered(std::shared_ptr<ucx::Context>, std::span<std::byte>) {
  return FailedPrecondition("GPU memory is not registered with UCX");
}

/// What all ranks of one set of weights have in common.
Identity WithoutRank(Identity identity) {
  identity.erase("rank");
  return identity;
}

}  // namespace

WeightStore::WeightStore(std::shared_ptr<ucx::Context> context,
                         std::unique_ptr<transfer::Publisher> publisher,
                         const WeightStoreOptions& options, std::string why_none)
    : context_(std::move(context)),
      publisher_(std::move(publisher)),
      options_(options),
      why_none_(std::move(why_none)) {}

WeightStore::Rank* WeightStore::Find(std::uint32_t rank) {
  const auto found = ranks_.find(rank);
  return found == ranks_.end() ? nullptr : &found->second;
}

const WeightStore::Rank* WeightStore::Find(std::uint32_t rank) const {
  return const_cast<WeightStore*>(this)->Find(rank);
}

bool WeightStore::AllReady(bool or_arriving) const {
  if (expected_ranks_ == 0 || ranks_.size() != expected_ranks_) return false;
  for (const auto& [number, rank] : ranks_) {
    const bool arriving = rank.stage == Stage::kArriving && OfferedWhileArriving(rank.arena.get());
    if (rank.stage != Stage::kReady && !(or_arriving && arriving)) return false;
  }
  return true;
}

WeightOffer WeightStore::Offer(std::uint32_t rank) const {
  const std::scoped_lock lock(mutex_);
  const Rank* const held = Find(rank);
  if (held != nullptr && held->stage != Stage::kFilling) {
    return {.identity = held->identity, .reason = held->origin, .storage_allowed = true};
  }
  if (expected_ranks_ > 0 && rank >= expected_ranks_) {
    return {.identity = std::nullopt,
            .reason = "the weights at hand have " + std::to_string(expected_ranks_) + " ranks",
            .storage_allowed = true};
  }
  return {.identity = std::nullopt, .reason = why_none_, .storage_allowed = true};
}

Result<std::optional<ReadyWeights>> WeightStore::Weights(std::uint32_t rank) const {
  const std::scoped_lock lock(mutex_);
  const Rank* const held = Find(rank);
  if (held == nullptr && resting_ && resting_->Expects(rank)) return std::optional<ReadyWeights>();
  if (held == nullptr || held->stage == Stage::kFilling) {
    return Unavailable("there are no weights for " + RankName(rank) + ": " + why_none_);
  }
  if (held->stage != Stage::kReady) return std::optional<ReadyWeights>();
  return std::optional(
      ReadyWeights{.shape = ShapeOf(*held->arena), .manifest = json::Dump(ToJson(held->manifest))});
}

memory::ArenaOptions WeightStore::OptionsOf(std::uint32_t rank, std::uint64_t bytes,
                                            std::shared_ptr<const memory::Memory> memory,
                                            bool populate) const {
  // A GPU's slabs are cut at chunks, so that each copy and its digests stay within one of them.
  const std::uint64_t slab_bytes =
      memory->on_host() ? options_.slab_bytes
                        : RoundUp(RoundUp(options_.slab_bytes, memory->granularity()), kChunkBytes);
  return {.bytes = bytes,
          .memory = std::move(memory),
          .slab_bytes = slab_bytes,
          .name = "rouse-rank" + std::to_string(rank),
          .populate = populate};
}

Result<std::unique_ptr<memory::Arena>> WeightStore::ArenaToFill(const HelloRequest& hello,
                                                                std::uint64_t bytes) const {
  if (!hello.gpu.empty() && options_.gpus != nullptr) {
    auto on_gpu = [&]() -> Result<std::unique_ptr<memory::Arena>> {
      ROUSE_ASSIGN_OR_RETURN(auto memory, options_.gpus->MemoryOf(hello.gpu));
      ROUSE_ASSIGN_OR_RETURN(auto arena, memory::Arena::Prepare(OptionsOf(
                                             hello.rank, bytes, std::move(memory), false)));
      ROUSE_RETURN_IF_ERROR(arena->MakeSlabs(1));
      return arena;
    }();
    if (on_gpu.ok()) return on_gpu;
    log::Warning("weights are kept in host memory, not in the engine's GPU",
                 {{"rank", hello.rank}, {"error", on_gpu.status().ToString()}});
  }
  return memory::Arena::Create(OptionsOf(hello.rank, bytes, memory::HostMemory(), false));
}

Result<ArenaShape> WeightStore::Create(const HelloRequest& hello, std::uint64_t bytes) {
  auto created = ArenaToFill(hello, bytes);
  if (!created.ok()) return created.status().WithContext("create arena of " + RankName(hello.rank));
  Rank rank;
  rank.arena = *std::move(created);
  ROUSE_RETURN_IF_ERROR(publisher_->Hold(rank.arena));
  rank.identity = hello.identity;
  rank.origin = kPublishedHere;
  const ArenaShape shape = ShapeOf(*rank.arena);

  const std::scoped_lock lock(mutex_);
  WithdrawLocked();
  rank.generation = ++generation_;
  expected_ranks_ = hello.world_size;
  // One set of weights only: ranks of another identity, or beyond this world, are of an earlier
  // one.
  std::erase_if(ranks_, [&](const auto& entry) {
    return entry.first >= hello.world_size ||
           WithoutRank(entry.second.identity) != WithoutRank(hello.identity);
  });
  ranks_[hello.rank] = std::move(rank);
  return shape;
}

Result<std::vector<memory::OwnedFd>> WeightStore::Slabs(std::uint32_t rank, std::size_t first,
                                                        std::size_t count) {
  const std::scoped_lock lock(mutex_);
  Rank* const held = Find(rank);
  if (held == nullptr || held->arena == nullptr) {
    return FailedPrecondition("the arena of " + RankName(rank) + " is gone");
  }
  const std::size_t slabs = held->arena->slab_count();
  if (first >= slabs || count > slabs - first) {
    return InvalidArgument("first: slabs " + std::to_string(first) + " to " +
                           std::to_string(first + count - 1) + " of " + RankName(rank) +
                           " were asked for, its arena has " + std::to_string(slabs));
  }
  if (const Status made = held->arena->MakeSlabs(first + count); !made.ok()) {
    return made.WithContext("create arena of " + RankName(rank));
  }
  std::vector<memory::OwnedFd> fds;
  for (std::size_t i = 0; i < count; ++i) {
    ROUSE_ASSIGN_OR_RETURN(memory::OwnedFd fd, held->arena->slab(first + i).DuplicateFd());
    fds.push_back(std::move(fd));
  }
  return fds;
}

std::uint64_t WeightStore::HeldOn(const std::string& gpu) const {
  const std::scoped_lock lock(mutex_);
  std::uint64_t bytes = 0;
  for (const auto& [number, rank] : ranks_) {
    if (rank.arena != nullptr && rank.arena->memory().gpu() == gpu) bytes += rank.arena->bytes();
  }
  return bytes;
}

Status WeightStore::Publish(const HelloRequest& hello, const std::string& manifest_json,
                            Content content) {
  ROUSE_ASSIGN_OR_RETURN(const json::Json document, json::Parse(manifest_json, "manifest"));
  ROUSE_ASSIGN_OR_RETURN(WeightManifest manifest, ManifestFromJson(document, "manifest"));
  manifest.chunk_digests.clear();  // Ours are taken from the bytes, whatever the engine says.
  if (manifest.rank != hello.rank) {
    return InvalidArgument("manifest.rank: is " + std::to_string(manifest.rank) +
                           ", this connection is " + RankName(hello.rank));
  }
  if (const auto differences = IdentityDifferences(manifest.identity, hello.identity);
      !differences.empty()) {
    return InvalidArgument("manifest.identity: differs from Hello's: " + differences.front());
  }
  const std::scoped_lock lock(mutex_);
  Rank* const held = Find(hello.rank);
  if (held == nullptr || held->stage != Stage::kFilling) {
    return FailedPrecondition("there is no arena of " + RankName(hello.rank) +
                              " that waits to be published: send CreateArena first");
  }
  if (!held->arena->whole()) {
    return FailedPrecondition(
        "not every slab of " + RankName(hello.rank) +
        "'s arena was asked for, so it cannot hold weights: send GetSlabs first");
  }
  ROUSE_RETURN_IF_ERROR(memory::CheckManifest(manifest, held->arena->bytes(), false));
  ROUSE_RETURN_IF_ERROR(held->arena->Seal());
  held->manifest = std::move(manifest);
  held->stage = Stage::kPublished;
  held->placeholders = content == Content::kPlaceholders;
  // What the engine's own loader has read is not known: as much as the weights are.
  if (content == Content::kReadByEngine) bytes_.storage += held->arena->bytes();
  return Status();
}

bool WeightStore::HasPlaceholders() const {
  const std::scoped_lock lock(mutex_);
  return HasPlaceholdersLocked();
}

bool WeightStore::HasPlaceholdersLocked() const {
  return std::any_of(ranks_.begin(), ranks_.end(),
                     [](const auto& entry) { return entry.second.placeholders; });
}

void WeightStore::OnEngine(const HelloRequest& hello) {
  const std::scoped_lock lock(mutex_);
  engines_[hello.rank] = hello.gpu;
  engines_changed_.notify_all();
}

void WeightStore::OnEngineGone(std::uint32_t rank) {
  const std::scoped_lock lock(mutex_);
  engines_.erase(rank);
}

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

Holdings WeightStore::holdings() const {
  const std::scoped_lock lock(mutex_);
  Holdings holdings;
  holdings.bytes_by_source = bytes_;
  holdings.transport = transport_;
  if (ranks_.empty() || ranks_.size() != expected_ranks_) return holdings;
  WeightsReport report;
  for (const auto& [number, rank] : ranks_) {
    if (rank.stage == Stage::kFilling || rank.placeholders) return holdings;
    // Nothing to tell of until peers can use it.
    if (rank.stage == Stage::kArriving && offered_ != Offered::kArriving) return holdings;
    report.bytes += rank.arena->bytes();
    ++report.ranks;
  }
  report.form = ranks_.begin()->second.manifest.form;
  report.identity = IdentityDigest(ranks_.begin()->second.identity);
  report.servable = offered_ == Offered::kComplete;
  report.arriving = offered_ == Offered::kArriving;
  holdings.weights = report;
  return holdings;
}

void WeightStore::AddTransport(const std::string& transport) {
  const std::scoped_lock lock(mutex_);
  transport_ = transport;
}

void WeightStore::AddStorageBytes(std::uint64_t bytes) {
  const std::scoped_lock lock(mutex_);
  bytes_.storage += bytes;
}

std::uint64_t WeightStore::published_bytes() const {
  const std::scoped_lock lock(mutex_);
  std::uint64_t bytes = 0;
  for (const auto& [number, rank] : ranks_) {
    if (rank.from_peer || rank.stage == Stage::kFilling || rank.placeholders) continue;
    bytes += rank.arena->bytes();
  }
  return bytes;
}

std::uint64_t WeightStore::pulled_bytes() const {
  const std::scoped_lock lock(mutex_);
  std::uint64_t bytes = 0;
  for (const auto& [number, rank] : ranks_) {
    if (rank.from_peer && rank.stage == Stage::kReady) bytes += rank.arena->bytes();
  }
  return bytes;
}

}  // namespace rouse::agent
