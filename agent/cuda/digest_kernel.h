// What the digest kernel and the code that launches it agree on. Private to agent/cuda; read by
// nvcc too.

#pragma once

#include <cstdint>

namespace rouse::cuda {

inline constexpr std::uint64_t kKernelBlockBytes = 64u << 10;
inline constexpr unsigned kKernelThreads = 128;  ///< In a thread block.
inline constexpr unsigned kThreadsForBlock = 4;  ///< Of 64 KiB.

/// XXH3's secret as the eight accumulators use it, 64-bit little-endian words. Offsets are bytes of
/// the 192-byte secret.
struct DigestKeys {
  std::uint64_t
      step[24];           ///< From 0, aligned: step n uses words n to n + 7, the scramble 16 to 23.
  std::uint64_t last[8];  ///< From 121, for the last 64 bytes.
  std::uint64_t low[8];   ///< From 11, for the low half of the result.
  std::uint64_t high[8];  ///< From 117, for the high half.
};

}  // namespace rouse::cuda
