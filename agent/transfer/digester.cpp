#include "agent/transfer/digester.h"

#include <pthread.h>

#include <algorithm>
#include <utility>

#include "agent/memory/chunk_digest.h"

namespace rouse::transfer {

Digester::Digester(int threads, const std::vector<std::string>& expected,
                   std::function<void()> on_result, Keep keep)
    : expected_(expected), on_result_(std::move(on_result)), keep_(std::move(keep)) {
  for (int i = 0; i < std::max(threads, 1); ++i) threads_.emplace_back([this] { Work(); });
}

Digester::~Digester() {
  const std::lock_guard lock(mutex_);
  stop_ = true;
  wake_.notify_all();
}

void Digester::Submit(std::uint64_t chunk, std::span<const std::byte> bytes) {
  const std::lock_guard lock(mutex_);
  jobs_.push_back({.chunk = chunk, .bytes = bytes});
  wake_.notify_one();
}

std::vector<DigestResult> Digester::Take() {
  const std::lock_guard lock(mutex_);
  return std::exchange(results_, {});
}

void Digester::Work() {
  ::pthread_setname_np(::pthread_self(), "pull-digest");
  for (;;) {
    Job job;
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [this] { return stop_ || !jobs_.empty(); });
      if (stop_) return;
      job = jobs_.front();
      jobs_.pop_front();
    }
    const bool matches = memory::DigestChunk(job.bytes) == expected_[job.chunk];
    Status kept = matches && keep_ ? keep_(job.chunk, job.bytes) : Status();
    {
      const std::lock_guard lock(mutex_);
      results_.push_back({.chunk = job.chunk, .matches = matches, .kept = std::move(kept)});
    }
    on_result_();
  }
}

}  // namespace rouse::transfer
