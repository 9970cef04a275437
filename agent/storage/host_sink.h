// A sink that is the arena itself: reads land where they belong.

#pragma once

#include "agent/memory/arena.h"
#include "agent/storage/sink.h"

namespace rouse::storage {

/// Reads into `arena`, which must outlive it and not be sealed yet.
class HostSink final : public Sink {
 public:
  explicit HostSink(memory::Arena& arena) : arena_(arena) {}

  std::uint64_t arena_bytes() const override { return arena_.bytes(); }
  std::byte* Acquire(std::uint64_t arena_offset, std::uint64_t) override {
    return arena_.span().data() + arena_offset;
  }
  Status Filled(std::byte*, std::uint64_t, std::uint64_t) override { return {}; }
  void Unused(std::byte*) override {}
  Status WaitForMemory(std::chrono::milliseconds) override { return {}; }
  Status Flush() override { return {}; }

 private:
  memory::Arena& arena_;
};

}  // namespace rouse::storage
