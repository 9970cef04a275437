#include "agent/transfer/remote_source.h"

#include <algorithm>

namespace rouse::transfer {
namespace {

std::vector<std::uint64_t> Sizes(const RemoteRank& rank) {
  std::vector<std::uint64_t> sizes;
  for (const RemoteSlab& slab : rank.slabs) sizes.push_back(slab.bytes);
  return sizes;
}

}  // namespace

std::vector<std::uint64_t> Starts(const std::vector<std::uint64_t>& sizes) {
  std::vector<std::uint64_t> starts;
  std::uint64_t at = 0;
  for (const std::uint64_t bytes : sizes) {
    starts.push_back(at);
    at += bytes;
  }
  return starts;
}

std::size_t IndexOf(const std::vector<std::uint64_t>& starts, std::uint64_t offset) {
  return static_cast<std::size_t>(std::upper_bound(starts.begin(), starts.end(), offset) -
                                  starts.begin() - 1);
}

RemoteSource::RemoteSource(const RemoteRank& rank) : rank_(rank), starts_(Starts(Sizes(rank))) {}

Result<std::unique_ptr<RemoteSource>> RemoteSource::Connect(ucx::Worker& worker,
                                                            const std::string& worker_address,
                                                            const RemoteRank& rank) {
  std::unique_ptr<RemoteSource> source(new RemoteSource(rank));
  ROUSE_ASSIGN_OR_RETURN(source->endpoint_, ucx::Endpoint::Connect(worker, worker_address));
  for (std::size_t i = 0; i < rank.slabs.size(); ++i) {
    auto key = source->endpoint_->OpenKey(rank.slabs[i].rkey);
    if (!key.ok()) return key.status().WithContext("slab " + std::to_string(i));
    source->keys_.push_back(*std::move(key));
  }
  if (!rank.availability) return source;
  source->bitmap_.assign(rank.availability->bytes / sizeof(std::uint64_t), 0);
  ROUSE_ASSIGN_OR_RETURN(source->bitmap_memory_,
                         ucx::RegisteredMemory::Register(
                             worker.context(), std::as_writable_bytes(std::span(source->bitmap_))));
  auto key = source->endpoint_->OpenKey(rank.availability->rkey);
  if (!key.ok()) return key.status().WithContext("availability");
  source->bitmap_key_ = *std::move(key);
  return source;
}

void RemoteSource::Read(std::uint64_t piece, std::uint64_t offset, std::span<std::byte> into,
                        const ucx::RegisteredMemory& memory) {
  const std::size_t slab = IndexOf(starts_, offset);
  reads_.push_back(
      {.piece = piece,
       .request = endpoint_->Get({.into = into,
                                  .memory = &memory,
                                  .from = rank_.slabs[slab].address + (offset - starts_[slab]),
                                  .key = &keys_[slab]})});
}

std::vector<RemoteSource::Arrival> RemoteSource::TakeArrivals() {
  std::vector<Arrival> arrivals;
  std::erase_if(reads_, [&](Pending& read) {
    const std::optional<Status> ended = read.request.Poll();
    if (!ended) return false;
    // Why the connection broke says more than that this read was cancelled by it.
    const bool broke = !ended->ok() && !endpoint_->status().ok();
    arrivals.push_back({.piece = read.piece, .status = broke ? endpoint_->status() : *ended});
    return true;
  });
  return arrivals;
}

void RemoteSource::ReadAvailability() {
  looking_ = endpoint_->Get({.into = std::as_writable_bytes(std::span(bitmap_)),
                             .memory = &*bitmap_memory_,
                             .from = rank_.availability->address,
                             .key = &*bitmap_key_});
}

Result<std::optional<std::span<const std::uint64_t>>> RemoteSource::TakeAvailability() {
  using Words = std::optional<std::span<const std::uint64_t>>;
  if (!looking_) return Words();
  const std::optional<Status> ended = looking_->Poll();
  if (!ended) return Words();
  looking_.reset();
  if (!ended->ok()) return *ended;
  return Words(bitmap_);
}

}  // namespace rouse::transfer
