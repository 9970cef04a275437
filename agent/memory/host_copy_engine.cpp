#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

#include "agent/memory/copy_engine.h"

namespace rouse::memory {
namespace {

Status CheckCopy(const Arena* from, const Arena& to, const CopyOptions& options) {
  if (options.chunk_bytes == 0) return InvalidArgument("chunks of 0 bytes");
  if (!to.memory().on_host() || (from != nullptr && !from->memory().on_host())) {
    return InvalidArgument("the CPU cannot reach memory of " +
                           (to.memory().on_host() ? from : &to)->memory().name());
  }
  if (from != nullptr && from->bytes() != to.bytes()) {
    return InvalidArgument("copy an arena of " + std::to_string(from->bytes()) +
                           " bytes into one of " + std::to_string(to.bytes()));
  }
  return {};
}

// One operation. A chunk is digested right after it was copied, while it is in the cache.
class Run {
 public:
  Run(const std::byte* from, std::byte* to, std::uint64_t bytes, const CopyOptions& options)
      : from_(from), to_(to), bytes_(bytes), options_(options) {}

  Status Go(int threads, const OnPiece& on_piece) {
    const std::uint64_t chunks = ChunkCount(bytes_, options_.chunk_bytes);
    std::vector<std::jthread> pool;
    for (int i = 0; i < std::max(threads, 1); ++i) pool.emplace_back([this] { Work(); });
    const std::stop_callback stopped(options_.stop, [this] { End(); });
    for (std::uint64_t reported = 0; reported < chunks;) {
      std::deque<Done> arrived;
      {
        std::unique_lock lock(mutex_);
        const bool moved = changed_.wait_for(lock, options_.progress_deadline,
                                             [&] { return !done_.empty() || ended_; });
        if (options_.stop.stop_requested()) {
          return Status(StatusCode::kCancelled, "copying was cancelled");
        }
        if (!moved) {
          ended_ = true;
          return DeadlineExceeded("nothing was copied for " +
                                  std::to_string(options_.progress_deadline.count()) + " ms");
        }
        arrived.swap(done_);
      }
      for (const Done& piece : arrived) {
        const Status status = on_piece({piece.range.offset, piece.range.bytes, piece.blocks});
        if (!status.ok()) {
          End();
          return status;
        }
        ++reported;
      }
    }
    return {};
  }

 private:
  struct Done {
    ChunkRange range;
    std::vector<BlockDigest> blocks;
  };

  void End() {
    const std::scoped_lock lock(mutex_);
    ended_ = true;
    changed_.notify_all();
  }

  void Work() {
    ::pthread_setname_np(::pthread_self(), "arena-copy");
    for (;;) {
      const std::uint64_t chunk = next_.fetch_add(1);
      if (chunk >= ChunkCount(bytes_, options_.chunk_bytes)) return;
      {
        const std::scoped_lock lock(mutex_);
        if (ended_) return;
      }
      Done done{.range = ChunkRangeOf(chunk, bytes_, options_.chunk_bytes), .blocks = {}};
      std::byte* const at = to_ + done.range.offset;
      if (from_ != nullptr) std::memcpy(at, from_ + done.range.offset, done.range.bytes);
      const std::uint64_t digested = options_.digest ? done.range.bytes : 0;
      for (std::uint64_t offset = 0; offset < digested; offset += kDigestBlockBytes) {
        done.blocks.push_back(
            DigestBlock({at + offset, std::min(kDigestBlockBytes, done.range.bytes - offset)}));
      }
      const std::scoped_lock lock(mutex_);
      done_.push_back(std::move(done));
      changed_.notify_all();
    }
  }

  const std::byte* const from_;  // null: only digest
  std::byte* const to_;
  const std::uint64_t bytes_;
  const CopyOptions& options_;
  std::atomic<std::uint64_t> next_{0};
  std::mutex mutex_;
  std::condition_variable changed_;
  bool ended_ = false;     // guarded by mutex_
  std::deque<Done> done_;  // guarded by mutex_
};

class HostCopies final : public CopyEngine {
 public:
  explicit HostCopies(int threads) : threads_(threads) {}

  Status Copy(const Arena& from, Arena& to, const CopyOptions& options,
              const OnPiece& on_piece) override {
    ROUSE_RETURN_IF_ERROR(CheckCopy(&from, to, options));
    return Run(from.span().data(), to.span().data(), to.bytes(), options).Go(threads_, on_piece);
  }

  Status Digest(const Arena& arena, const CopyOptions& options, const OnPiece& on_piece) override {
    ROUSE_RETURN_IF_ERROR(CheckCopy(nullptr, arena, options));
    // Nothing is written where nothing is copied from.
    auto* const bytes = const_cast<std::byte*>(arena.span().data());
    return Run(nullptr, bytes, arena.bytes(), options).Go(threads_, on_piece);
  }

 private:
  const int threads_;
};

}  // namespace

std::unique_ptr<CopyEngine> HostCopyEngine(int threads) {
  return std::make_unique<HostCopies>(threads);
}

}  // namespace rouse::memory
