#include "operator/kube/work_queue.h"

#include <algorithm>

namespace rouse::kube {
namespace {

double Seconds(SteadyTime::duration time) {
  return std::chrono::duration<double>(time).count();
}

}  // namespace

WorkQueue::WorkQueue(BackoffPolicy backoff, Clock clock, WorkQueueHooks hooks)
    : state_(backoff),
      clock_(std::move(clock)),
      hooks_(std::move(hooks)),
      random_(std::random_device()()) {}

void WorkQueue::Add(const std::string& key) {
  {
    std::lock_guard lock(mutex_);
    state_.Add(key);
    added_.try_emplace(key, clock_());
  }
  changed_.notify_one();
}

void WorkQueue::AddAfter(const std::string& key, std::chrono::milliseconds delay) {
  {
    std::lock_guard lock(mutex_);
    state_.AddAfter(key, delay, clock_());
  }
  // A waiting worker has to learn that the next due time may be earlier now.
  changed_.notify_one();
}

std::chrono::milliseconds WorkQueue::AddRateLimited(const std::string& key) {
  std::chrono::milliseconds delay;
  {
    std::lock_guard lock(mutex_);
    delay =
        state_.AddRateLimited(key, clock_(), std::uniform_real_distribution<double>(0, 1)(random_));
  }
  changed_.notify_one();
  return delay;
}

void WorkQueue::Forget(const std::string& key) {
  std::lock_guard lock(mutex_);
  state_.Forget(key);
}

std::optional<std::string> WorkQueue::Get() {
  std::unique_lock lock(mutex_);
  while (true) {
    const SteadyTime now = clock_();
    if (auto key = state_.TryGet(now)) {
      // Whoever was woken for a key that this worker took must not sleep over the next one.
      if (state_.queued() > 0 || state_.NextDue()) changed_.notify_one();
      const auto added = added_.extract(*key);
      if (hooks_.on_waited) hooks_.on_waited(added ? Seconds(now - added.mapped()) : 0.0);
      taken_[*key] = now;
      return key;
    }
    if (state_.drained()) {
      changed_.notify_all();
      return std::nullopt;
    }
    if (const auto due = state_.NextDue()) {
      changed_.wait_for(lock, *due - now);
    } else {
      changed_.wait(lock);
    }
  }
}

void WorkQueue::Done(const std::string& key) {
  {
    std::lock_guard lock(mutex_);
    state_.Done(key);
    const auto taken = taken_.extract(key);
    if (taken && hooks_.on_worked) hooks_.on_worked(Seconds(clock_() - taken.mapped()));
  }
  changed_.notify_all();
}

void WorkQueue::ShutDown() {
  {
    std::lock_guard lock(mutex_);
    state_.ShutDown();
  }
  changed_.notify_all();
}

std::size_t WorkQueue::depth() const {
  std::lock_guard lock(mutex_);
  return state_.queued();
}

UnfinishedWork WorkQueue::Unfinished() const {
  std::lock_guard lock(mutex_);
  UnfinishedWork out;
  const SteadyTime now = clock_();
  for (const auto& [key, since] : taken_) {
    const double seconds = Seconds(now - since);
    ++out.keys;
    out.seconds += seconds;
    out.longest_seconds = std::max(out.longest_seconds, seconds);
  }
  return out;
}

int WorkQueue::failures(const std::string& key) const {
  std::lock_guard lock(mutex_);
  return state_.failures(key);
}

}  // namespace rouse::kube
