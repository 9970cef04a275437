#include <pthread.h>

#include <algorithm>
#include <random>
#include <utility>

#include "common/log.h"
#include "operator/kube/events.h"

namespace rouse::kube {
namespace {

using std::chrono::steady_clock;
using std::chrono::system_clock;

constexpr int kAttempts = 6;
constexpr BackoffPolicy kRetry{std::chrono::milliseconds(500), std::chrono::milliseconds(10'000)};
constexpr std::chrono::seconds kLastWrites{1};
constexpr std::chrono::seconds kLogEvery{10};

bool MayPass(const Status& status) {
  return status.code() == StatusCode::kUnavailable ||
         status.code() == StatusCode::kDeadlineExceeded;
}

}  // namespace

EventRecorder::EventRecorder(Api& api, EventOptions options)
    : api_(api), options_(std::move(options)), aggregator_(options_), thread_([this] {
        pthread_setname_np(pthread_self(), "event-recorder");
        Run();
      }) {}

EventRecorder::~EventRecorder() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    stop_by_ = steady_clock::now() + kLastWrites;
  }
  changed_.notify_all();
  thread_.join();
}

void EventRecorder::Emit(Event event) {
  {
    std::lock_guard lock(mutex_);
    if (stopping_ || queue_.size() >= options_.queue_limit) {
      ++dropped_;
      return;
    }
    queue_.push_back(std::move(event));
  }
  changed_.notify_one();
}

void EventRecorder::Run() {
  std::mt19937_64 random{std::random_device()()};
  while (true) {
    std::vector<EventWrite> writes;
    bool last = false;
    {
      std::unique_lock lock(mutex_);
      const auto ready = [this] { return stopping_ || !queue_.empty(); };
      if (const auto due = aggregator_.NextDue()) {
        const auto wait = std::clamp<system_clock::duration>(
            *due - system_clock::now(), system_clock::duration::zero(), options_.series_every);
        changed_.wait_for(lock, wait, ready);
      } else {
        changed_.wait(lock, ready);
      }
      if (!queue_.empty()) {
        Event event = std::move(queue_.front());
        queue_.pop_front();
        lock.unlock();
        writes = aggregator_.Add(event, system_clock::now(), random());
      } else {
        last = stopping_;
        lock.unlock();
        writes = aggregator_.Due(system_clock::now(), last);
      }
    }
    for (const EventWrite& write : writes) Write(write);
    if (last) return;
  }
}

void EventRecorder::Write(const EventWrite& write) {
  for (int attempt = 1;; ++attempt) {
    {
      std::lock_guard lock(mutex_);
      if (stopping_ && steady_clock::now() >= stop_by_) {
        ++dropped_;
        return;
      }
    }
    const Status status =
        write.create ? api_.Create(Events(), write.body).status()
                     : api_.MergePatch(Events(), write.name, write.body, PatchOptions{}).status();
    // AlreadyExists: an earlier attempt arrived and only its answer was lost.
    if (status.ok() || (write.create && status.code() == StatusCode::kAlreadyExists)) {
      ++written_;
      return;
    }
    bool stopping = false;
    if (MayPass(status) && attempt < kAttempts) {
      std::unique_lock lock(mutex_);
      stopping =
          changed_.wait_for(lock, BackoffDelay(kRetry, attempt, 1.0), [this] { return stopping_; });
      if (!stopping) continue;
    }
    ++dropped_;
    aggregator_.Lost(write.key);
    // A patched Event that is gone has only reached its age; everything else should be seen, but
    // not a line for each of hundreds.
    const bool aged = !write.create && status.code() == StatusCode::kNotFound;
    if (!aged && steady_clock::now() >= next_log_) {
      next_log_ = steady_clock::now() + kLogEvery;
      log::Warning("events lost", {{"event", write.name.Key()},
                                   {"lost_so_far", dropped_.load()},
                                   {"error", status.ToString()}});
    }
    return;
  }
}

}  // namespace rouse::kube
