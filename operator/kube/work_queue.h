// Keys that want to be reconciled.
//
// The rules are client-go's: a key is in the queue at most once; no two workers hold one key at a
// time; a key that is added while a worker holds it comes back when that worker is done. Delayed
// keys come when due, the earliest time wins, and an immediate Add cancels the delay.
// Failed keys come back after a jittered exponential backoff, counted per key until Forget.
//
//   while (auto key = queue.Get()) {
//     const Status status = Reconcile(*key);
//     if (status.ok()) { queue.Forget(*key); if (replan_after) queue.AddAfter(*key, *replan_after);
//     } else queue.AddRateLimited(*key); queue.Done(*key);
//   }
//
// QueueState decides, with time and jitter as arguments (pure, one thread); WorkQueue adds the lock
// and the waiting.

#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <unordered_map>
#include <unordered_set>

#include "operator/kube/backoff.h"

namespace rouse::kube {

using SteadyTime = std::chrono::steady_clock::time_point;

class QueueState {
 public:
  explicit QueueState(BackoffPolicy backoff = {}) : backoff_(backoff) {}

  void Add(const std::string& key);
  void AddAfter(const std::string& key, std::chrono::milliseconds delay, SteadyTime now);
  /// Counts a failure and returns the delay after which the key comes back. `jitter` is in [0, 1).
  std::chrono::milliseconds AddRateLimited(const std::string& key, SteadyTime now, double jitter);
  void Forget(const std::string& key) { failures_.erase(key); }
  void Done(const std::string& key);

  /// The next key that may be worked on; moves due keys into the queue first.
  std::optional<std::string> TryGet(SteadyTime now);

  /// When the earliest delayed key is due.
  std::optional<SteadyTime> NextDue() const;

  /// No more adds; delayed keys are dropped, queued ones are still handed out.
  void ShutDown();
  /// Shut down, nothing queued.
  bool drained() const { return shut_down_ && queue_.empty() && dirty_.empty(); }
  bool idle() const { return processing_.empty(); }

  std::size_t queued() const { return queue_.size(); }
  std::size_t delayed() const { return due_.size(); }
  int failures(const std::string& key) const;

 private:
  void CancelDelay(const std::string& key);

  BackoffPolicy backoff_;
  bool shut_down_ = false;
  std::deque<std::string> queue_;
  std::unordered_set<std::string> dirty_;       ///< Wants work: queued, or added while processing.
  std::unordered_set<std::string> processing_;  ///< Held by a worker.
  std::unordered_map<std::string, SteadyTime> due_;
  std::set<std::pair<SteadyTime, std::string>> by_due_;
  std::unordered_map<std::string, int> failures_;
};

/// What metrics are made of; on the threads of Get and Done, with the queue's lock held.
struct WorkQueueHooks {
  /// A key is handed out, so long after it was added (0 for one that was delayed, when it is due).
  std::function<void(double seconds)> on_waited;
  /// A key is done with, so long after it was handed out.
  std::function<void(double seconds)> on_worked;
};

/// Of the keys that workers hold, since they were handed out.
struct UnfinishedWork {
  int keys = 0;
  double seconds = 0;  ///< All together.
  double longest_seconds = 0;
};

/// Thread-safe.
class WorkQueue {
 public:
  using Clock = std::function<SteadyTime()>;

  explicit WorkQueue(BackoffPolicy backoff = {}, Clock clock = std::chrono::steady_clock::now,
                     WorkQueueHooks hooks = {});

  void Add(const std::string& key);
  void AddAfter(const std::string& key, std::chrono::milliseconds delay);
  std::chrono::milliseconds AddRateLimited(const std::string& key);
  void Forget(const std::string& key);

  /// Waits for a key; the caller must call Done with it. nullopt after ShutDown once nothing is
  /// queued any more and no other worker can put a key back.
  std::optional<std::string> Get();
  void Done(const std::string& key);

  void ShutDown();

  /// Keys that wait for a worker, for metrics.
  std::size_t depth() const;
  int failures(const std::string& key) const;
  UnfinishedWork Unfinished() const;

  /// Looks at the clock again. For tests with a clock of their own.
  void Wake() { changed_.notify_all(); }

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  QueueState state_;
  Clock clock_;
  const WorkQueueHooks hooks_;
  std::unordered_map<std::string, SteadyTime> added_;  ///< Guarded: those that nobody took yet.
  std::unordered_map<std::string, SteadyTime> taken_;  ///< Guarded: those that a worker holds.
  std::mt19937_64 random_;
};

}  // namespace rouse::kube
