// How messages name a rank.

#pragma once

#include <cstdint>
#include <string>

namespace rouse::agent {

inline std::string RankName(std::uint32_t rank) {
  return "rank " + std::to_string(rank);
}

}  // namespace rouse::agent
