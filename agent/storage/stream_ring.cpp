#include "agent/storage/stream_ring.h"

#include <algorithm>

namespace rouse::storage {

StreamRing::StreamRing(const StreamPlan& plan, std::unique_ptr<memory::Arena> slots,
                       std::function<void()> on_ready)
    : slots_(std::move(slots)), slot_bytes_(plan.slot_bytes), on_ready_(std::move(on_ready)) {
  for (const StreamBatch& batch : plan.batches) left_.push_back(batch.bytes);
}

Result<std::unique_ptr<StreamRing>> StreamRing::Create(const StreamPlan& plan,
                                                       std::shared_ptr<const memory::Memory> memory,
                                                       std::function<void()> on_ready) {
  if (!memory->on_host()) {
    return InvalidArgument("a checkpoint cannot be read into " + memory->name() + " memory");
  }
  auto slots = memory::Arena::Create({.bytes = plan.slots * plan.slot_bytes,
                                      .memory = std::move(memory),
                                      .slab_bytes = plan.slot_bytes,
                                      .name = "rouse-stream",
                                      .populate = true});
  if (!slots.ok())
    return slots.status().WithContext("take memory to stream the checkpoint through");
  ROUSE_RETURN_IF_ERROR((*slots)->Seal());
  return std::unique_ptr<StreamRing>(new StreamRing(plan, *std::move(slots), std::move(on_ready)));
}

bool StreamRing::Ready(std::size_t batch) const {
  const std::scoped_lock lock(mutex_);
  return batch < left_.size() && batch < freed_ + slots_->slab_count() && left_[batch] == 0;
}

void StreamRing::Free(std::size_t batches) {
  {
    const std::scoped_lock lock(mutex_);
    if (batches <= freed_) return;
    freed_ = std::min(batches, left_.size());
  }
  freed_changed_.notify_all();
}

std::uint64_t StreamRing::bytes_read() const {
  const std::scoped_lock lock(mutex_);
  return bytes_read_;
}

std::byte* StreamRing::Acquire(std::uint64_t arena_offset, std::uint64_t) {
  const std::size_t batch = arena_offset / slot_bytes_;
  const std::scoped_lock lock(mutex_);
  if (batch >= freed_ + slots_->slab_count()) return nullptr;
  return slots_->SlabSpan(batch % slots_->slab_count()).data() + arena_offset % slot_bytes_;
}

Status StreamRing::Filled(std::byte*, std::uint64_t arena_offset, std::uint64_t bytes) {
  bool ready = false;
  {
    const std::scoped_lock lock(mutex_);
    std::uint64_t& left = left_[arena_offset / slot_bytes_];
    left -= bytes;
    ready = left == 0;
    bytes_read_ += bytes;
  }
  if (ready) on_ready_();
  return {};
}

Status StreamRing::WaitForMemory(std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  const std::size_t before = freed_;
  freed_changed_.wait_for(lock, timeout, [&] { return freed_ != before; });
  return {};
}

}  // namespace rouse::storage
