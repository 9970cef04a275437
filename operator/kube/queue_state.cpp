#include <algorithm>

#include "operator/kube/work_queue.h"

namespace rouse::kube {

void QueueState::Add(const std::string& key) {
  if (shut_down_) return;
  CancelDelay(key);
  if (!dirty_.insert(key).second) return;
  if (!processing_.contains(key)) queue_.push_back(key);
}

void QueueState::AddAfter(const std::string& key, std::chrono::milliseconds delay, SteadyTime now) {
  if (shut_down_) return;
  if (delay <= std::chrono::milliseconds(0)) return Add(key);
  const SteadyTime due = now + delay;
  if (const auto it = due_.find(key); it != due_.end() && it->second <= due) return;
  CancelDelay(key);
  due_.emplace(key, due);
  by_due_.emplace(due, key);
}

std::chrono::milliseconds QueueState::AddRateLimited(const std::string& key, SteadyTime now,
                                                     double jitter) {
  int& failures = failures_[key];
  // Beyond this the delay has long reached its bound.
  failures = std::min(failures + 1, 1000);
  const auto delay = BackoffDelay(backoff_, failures, jitter);
  AddAfter(key, delay, now);
  return delay;
}

void QueueState::Done(const std::string& key) {
  processing_.erase(key);
  if (dirty_.contains(key)) queue_.push_back(key);
}

std::optional<std::string> QueueState::TryGet(SteadyTime now) {
  while (!by_due_.empty() && by_due_.begin()->first <= now) {
    const std::string key = by_due_.begin()->second;
    Add(key);  // Also takes the key out of due_ and by_due_.
  }
  if (queue_.empty()) return std::nullopt;
  std::string key = std::move(queue_.front());
  queue_.pop_front();
  dirty_.erase(key);
  processing_.insert(key);
  return key;
}

std::optional<SteadyTime> QueueState::NextDue() const {
  if (by_due_.empty()) return std::nullopt;
  return by_due_.begin()->first;
}

void QueueState::ShutDown() {
  shut_down_ = true;
  due_.clear();
  by_due_.clear();
}

int QueueState::failures(const std::string& key) const {
  const auto it = failures_.find(key);
  return it == failures_.end() ? 0 : it->second;
}

void QueueState::CancelDelay(const std::string& key) {
  const auto it = due_.find(key);
  if (it == due_.end()) return;
  by_due_.erase({it->second, key});
  due_.erase(it);
}

}  // namespace rouse::kube
