#include "agent/storage/read_plan.h"

#include <algorithm>

#include "common/round_up.h"

namespace rouse::storage {
namespace {

constexpr std::uint64_t kMaxArenaBytes = std::uint64_t{1} << 44;  // 16 TiB, as in a manifest
constexpr std::uint64_t kViewAlignment = 8;                       // the largest element

ShardPlace PlaceOf(const Shard& shard, std::uint64_t arena_offset) {
  ShardPlace place{.arena_offset = arena_offset};
  if (shard.header.data_bytes == 0) return place;
  const std::uint64_t data = shard.header.data_offset;
  place.direct = data % kViewAlignment == 0;
  place.file_offset = place.direct ? data / kDirectAlignment * kDirectAlignment : data;
  place.bytes = shard.header.data_bytes + (data - place.file_offset);
  return place;
}

void Cut(std::uint32_t shard, const ShardPlace& place, std::uint64_t request_bytes,
         std::vector<Read>& out) {
  for (std::uint64_t done = 0; done < place.bytes;) {
    const std::uint64_t at = place.arena_offset + done;
    const std::uint64_t bytes = std::min(place.bytes - done, request_bytes - at % request_bytes);
    out.push_back({.shard = shard,
                   .file_offset = place.file_offset + done,
                   .arena_offset = at,
                   .bytes = bytes});
    done += bytes;
  }
}

Result<Tensor> Describe(const FileTensor& from, const Shard& shard, const ShardPlace& place,
                        std::uint32_t allocation) {
  const std::string what = shard.file + ": tensor " + Quoted(from.name) + ": ";
  Tensor tensor{
      .name = from.name, .allocation = allocation, .dtype = std::string(from.dtype->torch)};
  const std::uint64_t element = DtypeBytes(tensor.dtype);
  if (element == 0) {
    return FailedPrecondition(what + "an arena cannot hold dtype " + std::string(from.dtype->name) +
                              "; use the engine's own loader");
  }
  tensor.offset = shard.header.data_offset - place.file_offset + from.begin;
  // Files that are read directly keep their offsets; others start at a multiple of anything.
  if (tensor.offset % element != 0) {
    return FailedPrecondition(what + "lies at no multiple of its element, " +
                              std::to_string(element) +
                              " bytes; write the checkpoint anew, or use the engine's own loader");
  }
  tensor.shape.assign(from.shape.begin(), from.shape.end());
  if (from.dtype->bits == 4) {  // two in one element of torch's
    if (tensor.shape.empty() || tensor.shape.back() % 2 != 0) {
      return FailedPrecondition(what + "its last dimension is no multiple of 2, as " +
                                tensor.dtype + " needs; use the engine's own loader");
    }
    tensor.shape.back() /= 2;
  }
  tensor.stride.assign(tensor.shape.size(), 1);
  for (std::size_t i = tensor.shape.size(); i-- > 1;) {
    tensor.stride[i - 1] = tensor.stride[i] * tensor.shape[i];  // no overflow: it is in a file
  }
  return tensor;
}

}  // namespace

std::uint64_t ReadPlan::read_bytes() const {
  std::uint64_t bytes = 0;
  for (const Read& read : reads) bytes += read.bytes;
  return bytes;
}

Result<ReadPlan> PlanReads(const Checkpoint& checkpoint, std::uint64_t request_bytes) {
  if (request_bytes == 0 || request_bytes % kDirectAlignment != 0 ||
      request_bytes > (std::uint64_t{1} << 30)) {
    return InvalidArgument("requests of " + std::to_string(request_bytes) +
                           " bytes; they must be a multiple of " +
                           std::to_string(kDirectAlignment) + " up to 1 GiB");
  }
  ReadPlan plan;
  for (const Shard& shard : checkpoint.shards) {
    const ShardPlace place = PlaceOf(shard, plan.arena_bytes);
    if (place.bytes > kMaxArenaBytes - plan.arena_bytes) {
      return InvalidArgument(shard.file + ": the checkpoint has more than " +
                             std::to_string(kMaxArenaBytes) + " bytes, the most for one arena");
    }
    plan.arena_bytes = RoundUp(plan.arena_bytes + place.bytes, kDirectAlignment);
    plan.shards.push_back(place);
  }
  if (plan.arena_bytes == 0) return InvalidArgument("the checkpoint has no tensor with any bytes");
  for (std::uint32_t i = 0; i < plan.shards.size(); ++i) {
    Cut(i, plan.shards[i], request_bytes, plan.reads);
  }
  return plan;
}

Result<WeightManifest> DescribeArena(const Checkpoint& checkpoint, const ReadPlan& plan) {
  WeightManifest manifest;
  manifest.arena_bytes = plan.arena_bytes;
  for (std::size_t i = 0; i < checkpoint.shards.size(); ++i) {
    const Shard& shard = checkpoint.shards[i];
    const ShardPlace& place = plan.shards[i];
    const auto allocation = static_cast<std::uint32_t>(manifest.allocations.size());
    manifest.allocations.push_back({.offset = place.arena_offset, .bytes = place.bytes});
    for (const FileTensor& from : shard.header.tensors) {
      if (from.begin == from.end) continue;  // holds nothing, and an engine publishes none either
      ROUSE_ASSIGN_OR_RETURN(Tensor tensor, Describe(from, shard, place, allocation));
      manifest.tensors.push_back(std::move(tensor));
    }
  }
  return manifest;
}

}  // namespace rouse::storage
