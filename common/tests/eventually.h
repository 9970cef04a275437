#pragma once

#include <chrono>
#include <functional>
#include <thread>

namespace rouse::test {

/// Whether `condition` holds within `longest`, asked every few milliseconds.
inline bool Eventually(const std::function<bool()>& condition,
                       std::chrono::milliseconds longest = std::chrono::seconds(60)) {
  const auto until = std::chrono::steady_clock::now() + longest;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > until) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(3));
  }
  return true;
}

}  // namespace rouse::test
