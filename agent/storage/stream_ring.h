// The slots that a checkpoint streams through: the reader fills them in order, and fills one again
// once nobody uses what it held before.
//
//   ROUSE_ASSIGN_OR_RETURN(auto ring, StreamRing::Create(plan, memory::HostMemory(), wake));
//   reading thread:  ReadCheckpoint(files, plan.reads, *ring, options, stop, {});
//   other threads:   if (ring->Ready(i)) ... use the slot of batch i ... ring->Free(i + 1);
//
// The memory is taken once, at the start, and used again and again: pages of a memfd come zeroed
// and one by one, which costs more than reading into them. It is sealed, so that a loader which
// maps a slot cannot change what another one sees; it maps privately, and anew for each batch,
// because a page that it has written to keeps what it held.
//
// Threads: the Sink's methods from the reader's, the others from any.

#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "agent/memory/arena.h"
#include "agent/storage/sink.h"
#include "agent/storage/stream_plan.h"

namespace rouse::storage {

class StreamRing final : public Sink {
 public:
  /// `on_ready` is called on the reader's thread when a batch has arrived; it must not block. The
  /// memory is host memory: what a loader on a device wants is memory of the device, which a reader
  /// cannot write to directly. ResourceExhausted when there is not enough.
  static Result<std::unique_ptr<StreamRing>> Create(const StreamPlan& plan,
                                                    std::shared_ptr<const memory::Memory> memory,
                                                    std::function<void()> on_ready);

  /// One slab a slot.
  const memory::Arena& slots() const { return *slots_; }

  /// Whether the whole batch lies in its slot.
  bool Ready(std::size_t batch) const;
  /// Nobody uses the first `batches` batches any more. Never takes back what was freed.
  void Free(std::size_t batches);
  /// Of all batches so far.
  std::uint64_t bytes_read() const;

  // Sink.
  std::uint64_t arena_bytes() const override { return left_.size() * slot_bytes_; }
  std::byte* Acquire(std::uint64_t arena_offset, std::uint64_t bytes) override;
  Status Filled(std::byte* memory, std::uint64_t arena_offset, std::uint64_t bytes) override;
  void Unused(std::byte*) override {}
  Status WaitForMemory(std::chrono::milliseconds timeout) override;
  Status Flush() override { return {}; }

 private:
  StreamRing(const StreamPlan& plan, std::unique_ptr<memory::Arena> slots,
             std::function<void()> on_ready);

  const std::unique_ptr<memory::Arena> slots_;
  const std::uint64_t slot_bytes_;
  const std::function<void()> on_ready_;
  mutable std::mutex mutex_;
  std::condition_variable freed_changed_;
  std::vector<std::uint64_t> left_;  // bytes of each batch that have not come
  std::size_t freed_ = 0;            // batches
  std::uint64_t bytes_read_ = 0;
};

}  // namespace rouse::storage
