#include <algorithm>

#include "agent/memory/chunk_digest.h"
#include "agent/transfer/source.h"

namespace rouse::transfer {
namespace {

// Real addresses and keys are some hundred bytes; UCX parses them without knowing where they end.
constexpr std::size_t kMaxAddressBytes = 16u << 10;
constexpr std::size_t kMaxKeyBytes = 4u << 10;
constexpr std::uint64_t kMaxSlabBytes = std::uint64_t{4} << 30;
constexpr std::size_t kMaxSlabs = 65536;

Status CheckBytes(const RemoteSlab& slab, const std::string& where) {
  if (slab.bytes == 0 || slab.bytes > kMaxSlabBytes) {
    return InvalidArgument(where + ".bytes: " + std::to_string(slab.bytes) +
                           " is not between 1 and " + std::to_string(kMaxSlabBytes));
  }
  return {};
}

Status CheckSlab(const RemoteSlab& slab, const std::string& where) {
  ROUSE_RETURN_IF_ERROR(CheckBytes(slab, where));
  if (slab.address == 0 || slab.address + slab.bytes < slab.address) {
    return InvalidArgument(where + ".address: the slab does not fit an address space");
  }
  if (slab.rkey.empty() || slab.rkey.size() > kMaxKeyBytes) {
    return InvalidArgument(where + ".rkey: has " + std::to_string(slab.rkey.size()) +
                           " bytes, expected 1 to " + std::to_string(kMaxKeyBytes));
  }
  return {};
}

Status CheckRank(const RemoteRank& rank) {
  ROUSE_RETURN_IF_ERROR(memory::CheckManifest(rank.manifest, rank.manifest.arena_bytes, true));
  if (rank.slabs.size() > kMaxSlabs) {
    return InvalidArgument("slabs: has more than " + std::to_string(kMaxSlabs) + " entries");
  }
  const auto check = InGpuMemory(rank) ? CheckBytes : CheckSlab;
  std::uint64_t total = 0;
  for (std::size_t i = 0; i < rank.slabs.size(); ++i) {
    ROUSE_RETURN_IF_ERROR(check(rank.slabs[i], "slabs[" + std::to_string(i) + "]"));
    total += rank.slabs[i].bytes;  // at most 65536 × 4 GiB
  }
  if (total != rank.manifest.arena_bytes) {
    return InvalidArgument("slabs: add up to " + std::to_string(total) + " bytes, arenaBytes is " +
                           std::to_string(rank.manifest.arena_bytes));
  }
  if (rank.stage_bytes > 0 && rank.stage_bytes < rank.manifest.chunk_bytes) {
    return InvalidArgument("stageBytes: " + std::to_string(rank.stage_bytes) +
                           " do not hold a chunk");
  }
  if (!rank.availability) return {};
  ROUSE_RETURN_IF_ERROR(CheckSlab(*rank.availability, "availability"));
  const std::uint64_t words = (rank.manifest.chunk_digests.size() + 63) / 64;
  if (rank.availability->bytes != words * sizeof(std::uint64_t)) {
    return InvalidArgument("availability.bytes: is " + std::to_string(rank.availability->bytes) +
                           ", expected " + std::to_string(words * sizeof(std::uint64_t)));
  }
  return {};
}

}  // namespace

Status CheckSource(const std::string& name, const std::string& worker_address,
                   const RemoteRank& rank) {
  const std::string what = "description of " + name;
  if (worker_address.empty() || worker_address.size() > kMaxAddressBytes) {
    return InvalidArgument(what + ": workerAddress: has " + std::to_string(worker_address.size()) +
                           " bytes, expected 1 to " + std::to_string(kMaxAddressBytes));
  }
  return CheckRank(rank).WithContext(what);
}

bool InGpuMemory(const RemoteRank& rank) {
  return !rank.slabs.empty() &&
         std::all_of(rank.slabs.begin(), rank.slabs.end(),
                     [](const RemoteSlab& slab) { return slab.rkey.empty(); });
}

bool CanBeStaged(const RemoteRank& rank) {
  return InGpuMemory(rank) && rank.stage_bytes > 0;
}

Status CheckKeys(const RemoteRank& rank) {
  if (!InGpuMemory(rank)) return {};
  return FailedPrecondition(
      CanBeStaged(rank)
          ? "its weights are in GPU memory, from which they are copied for one pull at a time"
          : "its weights are in GPU memory, which only agents of its node can read");
}

Status CheckSource(const PullSource& source) {
  return CheckSource(source.name, source.worker_address, source.rank);
}

}  // namespace rouse::transfer
