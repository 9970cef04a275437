// What the tests of the checkpoint reader put before and behind it.

#pragma once

#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "agent/memory/arena.h"
#include "agent/storage/reader.h"

namespace rouse::storage::test {

/// The arena itself; counts what is lent and says when the first bytes have come.
class WatchedSink final : public Sink {
 public:
  explicit WatchedSink(memory::Arena& arena) : arena_(arena) {}

  std::function<void()> on_filled;  ///< Called once.
  bool flushed = false;
  int lent() const { return lent_; }

  std::uint64_t arena_bytes() const override { return arena_.bytes(); }
  std::byte* Acquire(std::uint64_t arena_offset, std::uint64_t) override {
    ++lent_;
    return arena_.span().data() + arena_offset;
  }
  Status Filled(std::byte*, std::uint64_t, std::uint64_t) override {
    --lent_;
    if (auto call = std::exchange(on_filled, nullptr)) call();
    return {};
  }
  void Unused(std::byte*) override { --lent_; }
  Status WaitForMemory(std::chrono::milliseconds) override { return {}; }
  Status Flush() override {
    flushed = true;
    return {};
  }

 private:
  memory::Arena& arena_;
  int lent_ = 0;
};

/// As a device's: reads go to a few buffers, and on to the arena only when somebody waits for it.
class StagingSink final : public Sink {
 public:
  StagingSink(memory::Arena& arena, std::size_t buffers, std::size_t bytes) : arena_(arena) {
    for (std::size_t i = 0; i < buffers; ++i) {
      free_.push_back(static_cast<std::byte*>(std::aligned_alloc(kDirectAlignment, bytes)));
      owned_.emplace_back(free_.back(), &std::free);
    }
  }

  std::size_t free() const { return free_.size(); }

  std::uint64_t arena_bytes() const override { return arena_.bytes(); }
  std::byte* Acquire(std::uint64_t, std::uint64_t) override {
    if (free_.empty()) return nullptr;
    std::byte* memory = free_.back();
    free_.pop_back();
    return memory;
  }
  Status Filled(std::byte* memory, std::uint64_t arena_offset, std::uint64_t bytes) override {
    copies_.push_back({memory, arena_offset, (bytes + 4095) / 4096 * 4096});
    return {};
  }
  void Unused(std::byte* memory) override { free_.push_back(memory); }
  Status WaitForMemory(std::chrono::milliseconds timeout) override {
    if (copies_.empty()) std::this_thread::sleep_for(timeout);
    return Flush();
  }
  Status Flush() override {
    for (const Copy& copy : copies_) {
      std::memcpy(arena_.span().data() + copy.arena_offset, copy.memory, copy.bytes);
      free_.push_back(copy.memory);
    }
    copies_.clear();
    return {};
  }

 private:
  struct Copy {
    std::byte* memory = nullptr;
    std::uint64_t arena_offset = 0;
    std::uint64_t bytes = 0;
  };
  memory::Arena& arena_;
  std::vector<std::unique_ptr<std::byte, decltype(&std::free)>> owned_;
  std::vector<std::byte*> free_;
  std::vector<Copy> copies_;
};

/// Reads at once, but interrupts, cuts short and refuses at random; or answers `error` always.
class FaultyQueue final : public ReadQueue {
 public:
  explicit FaultyQueue(std::uint64_t seed, int error = 0) : random_(seed), error_(error) {}

  std::string_view name() const override { return "faulty"; }
  Status Submit(const ReadRequest& request) override {
    results_.push_back({.id = request.id, .bytes = Read(request)});
    return {};
  }
  Status Wait(std::chrono::milliseconds, std::vector<ReadResult>& out) override {
    out.insert(out.end(), results_.begin(), results_.end());
    results_.clear();
    return {};
  }
  void Cancel() override {}

 private:
  std::int64_t Read(const ReadRequest& request) {
    if (error_ != 0) return -error_;
    switch (random_() % 8) {
      case 0:
        return -EINTR;
      case 1:
        return -EAGAIN;
      case 2:
        if (!request.buffered) return -EINVAL;
        break;
      case 3:  // what came is then no whole number of blocks
        return ::pread(request.fd, request.memory,
                       request.buffered ? 1 + random_() % request.bytes : 4096,
                       static_cast<off_t>(request.file_offset));
      default:
        break;
    }
    return ::pread(request.fd, request.memory, request.bytes,
                   static_cast<off_t>(request.file_offset));
  }

  std::mt19937_64 random_;
  int error_;
  std::vector<ReadResult> results_;
};

/// Runs `read` on a thread for which the kernel refuses io_uring with `error`, as a container's
/// seccomp profile does.
Result<ReadReport> WithoutIoUring(int error, const std::function<Result<ReadReport>()>& read);

}  // namespace rouse::storage::test
