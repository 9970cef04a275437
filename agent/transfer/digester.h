// Threads that compare arrived chunks with the digests they should have. Private to agent/transfer.

#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "common/result.h"

namespace rouse::transfer {

struct DigestResult {
  std::uint64_t chunk = 0;
  bool matches = false;
  Status kept;  ///< What `keep` said, if there is one and the digest matches.
};

/// Threads: Submit and Take from one thread.
class Digester {
 public:
  using Keep = std::function<Status(std::uint64_t chunk, std::span<const std::byte> bytes)>;

  /// `expected` (32 hex digits a chunk) must outlive this object. `on_result` is called on a digest
  /// thread after each chunk; it must be thread-safe and quick. So is `keep` for each chunk that
  /// matches, before: what is to be done with it while it is in the cache.
  Digester(int threads, const std::vector<std::string>& expected, std::function<void()> on_result,
           Keep keep = nullptr);
  /// Finishes the chunk in hand, drops the rest.
  ~Digester();
  Digester(const Digester&) = delete;
  Digester& operator=(const Digester&) = delete;

  /// `bytes` must stay unchanged until the result was taken.
  void Submit(std::uint64_t chunk, std::span<const std::byte> bytes);

  /// The results since the last call.
  std::vector<DigestResult> Take();

 private:
  struct Job {
    std::uint64_t chunk = 0;
    std::span<const std::byte> bytes;
  };

  void Work();

  const std::vector<std::string>& expected_;
  const std::function<void()> on_result_;
  const Keep keep_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stop_ = false;
  std::deque<Job> jobs_;
  std::vector<DigestResult> results_;
  std::vector<std::jthread> threads_;  // last: they use all of the above
};

}  // namespace rouse::transfer
