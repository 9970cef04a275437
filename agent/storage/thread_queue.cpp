#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "agent/storage/read_queue.h"

namespace rouse::storage {
namespace {

class ThreadQueue final : public ReadQueue {
 public:
  explicit ThreadQueue(std::uint32_t threads) {
    for (std::uint32_t i = 0; i < std::max(threads, 1u); ++i) {
      threads_.emplace_back([this](const std::stop_token& stop) { Work(stop); });
    }
  }

  ~ThreadQueue() override {
    Cancel();
    for (std::jthread& thread : threads_) thread.request_stop();
    threads_.clear();  // joins
  }

  std::string_view name() const override { return "threads"; }

  Status Submit(const ReadRequest& request) override {
    {
      const std::lock_guard lock(mutex_);
      requests_.push_back(request);
    }
    work_.notify_one();
    return {};
  }

  Status Wait(std::chrono::milliseconds timeout, std::vector<ReadResult>& out) override {
    std::unique_lock lock(mutex_);
    done_.wait_for(lock, timeout, [this] { return !results_.empty(); });
    out.insert(out.end(), results_.begin(), results_.end());
    results_.clear();
    return {};
  }

  void Cancel() override {
    const std::lock_guard lock(mutex_);
    for (const ReadRequest& request : requests_) {
      results_.push_back({.id = request.id, .bytes = -ECANCELED});
    }
    requests_.clear();
  }

 private:
  void Work(const std::stop_token& stop) {
    ::pthread_setname_np(::pthread_self(), "storage-read");
    std::unique_lock lock(mutex_);
    while (work_.wait(lock, stop, [this] { return !requests_.empty(); })) {
      const ReadRequest request = requests_.front();
      requests_.pop_front();
      lock.unlock();
      const ssize_t bytes = ::pread(request.fd, request.memory, request.bytes,
                                    static_cast<off_t>(request.file_offset));
      const ReadResult result{.id = request.id, .bytes = bytes < 0 ? -errno : bytes};
      lock.lock();
      results_.push_back(result);
      done_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable_any work_;
  std::condition_variable done_;
  std::deque<ReadRequest> requests_;  // guarded by mutex_
  std::vector<ReadResult> results_;   // guarded by mutex_
  std::vector<std::jthread> threads_;
};

}  // namespace

std::unique_ptr<ReadQueue> CreateThreadQueue(std::uint32_t threads) {
  return std::make_unique<ThreadQueue>(threads);
}

}  // namespace rouse::storage
