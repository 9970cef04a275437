#pragma once

#include <cstdint>

namespace rouse {

/// The least multiple of `unit` that is not below `bytes`; the caller sees to it that it exists.
constexpr std::uint64_t RoundUp(std::uint64_t bytes, std::uint64_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

}  // namespace rouse
