// How far two agents are from each other. Nearer tiers are asked first.

#pragma once

#include <cstdint>
#include <string>

namespace rouse::transfer {

enum class Tier : std::uint8_t {
  kSameGpu,
  kSameNode,  ///< NVLink or shared memory.
  kSameRack,
  kSameZone,
  kFarther,
};

/// Where an agent runs, from Kubernetes topology labels and the device plugin. An empty field is
/// unknown and equals nothing.
struct Location {
  std::string zone;
  std::string rack;
  std::string node;
  std::string gpu;  ///< The GPU's UUID.

  bool operator==(const Location&) const = default;
};

inline Tier TierBetween(const Location& a, const Location& b) {
  const auto same = [](const std::string& x, const std::string& y) { return !x.empty() && x == y; };
  if (same(a.gpu, b.gpu)) return Tier::kSameGpu;
  if (same(a.node, b.node)) return Tier::kSameNode;
  if (same(a.rack, b.rack) && a.zone == b.zone) return Tier::kSameRack;
  if (same(a.zone, b.zone)) return Tier::kSameZone;
  return Tier::kFarther;
}

}  // namespace rouse::transfer
