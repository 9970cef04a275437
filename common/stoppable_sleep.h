#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <stop_token>

namespace rouse {

/// Sleeps until `at`, or until a stop is requested.
inline void SleepUntil(std::chrono::steady_clock::time_point at, const std::stop_token& stop) {
  std::mutex mutex;
  std::condition_variable_any never;
  std::unique_lock lock(mutex);
  never.wait_until(lock, stop, at, [] { return false; });
}

}  // namespace rouse
