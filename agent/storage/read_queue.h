// Many reads of files at once, in one of two ways: io_uring, or threads that call pread.
//
// Threads: one at a time. Ownership: file descriptors and memory stay the caller's, who keeps them
// until the read's result has come.

#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "common/result.h"

namespace rouse::storage {

struct ReadRequest {
  std::uint64_t id = 0;  ///< Comes back with the result.
  int fd = -1;
  std::uint64_t file_offset = 0;
  std::byte* memory = nullptr;
  std::uint32_t bytes = 0;
  /// The read copies out of memory or a cache on the processor: do it beside the caller's thread.
  bool buffered = false;
};

struct ReadResult {
  std::uint64_t id = 0;
  std::int64_t bytes = 0;  ///< As pread answers, but -errno for an error.
};

class ReadQueue {
 public:
  /// Returns when no request is under way any more.
  virtual ~ReadQueue() = default;

  /// "io_uring" or "threads".
  virtual std::string_view name() const = 0;

  /// Begins a read. The caller has at most as many under way as the queue was made for.
  virtual Status Submit(const ReadRequest& request) = 0;

  /// Appends the results that have come; blocks for the first at most for `timeout`.
  virtual Status Wait(std::chrono::milliseconds timeout, std::vector<ReadResult>& out) = 0;

  /// Asks what is under way to end early, as far as the kernel can: such reads answer -ECANCELED.
  /// Results must still be waited for.
  virtual void Cancel() = 0;
};

/// FailedPrecondition, with the kernel's answer, where io_uring is not to be had: old kernels have
/// none, and the seccomp profiles of most container engines forbid it.
Result<std::unique_ptr<ReadQueue>> CreateUringQueue(std::uint32_t depth);

/// `threads` threads of its own ("storage-read").
std::unique_ptr<ReadQueue> CreateThreadQueue(std::uint32_t threads);

}  // namespace rouse::storage
