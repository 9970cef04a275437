// The wall clock as the protocols write it.

#pragma once

#include <chrono>
#include <cstdint>

namespace rouse::agent {

/// Microseconds since the Unix epoch.
inline std::int64_t NowUs() {
  return std::chrono::duration_cast<std::chrono::microseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

}  // namespace rouse::agent
