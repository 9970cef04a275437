#include "agent/server/weights.h"

#include <algorithm>
#include <utility>

#include "agent/memory/chunk_digest.h"
#include "agent/server/rank_name.h"
#include "common/log.h"
#include "common/round_up.h"

namespace rouse::agent {
namespace {

constexpr std::string_view kPublishedHere = "published by this pod's engine";

// Only agents of this node can read a GPU's memory, and they read it when it is complete.
bool OfferedWhileArriving(const memory::Arena* arena) {
  return arena != nullptr && arena->memory().on_host();
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

ArenaShape WeightStore::ShapeOf(const memory::Arena& arena) {
  return {
      .arena_bytes = arena.bytes(), .slab_bytes = arena.SlabBytes(), .gpu = arena.memory().gpu()};
}

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
