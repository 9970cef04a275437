// Randomness that a seed decides, the same on every machine and with every standard library.

#pragma once

#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

namespace rouse {

/// One step of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators",
/// 2014): maps different inputs to different, unrelated outputs.
constexpr std::uint64_t Mix(std::uint64_t value) {
  value += 0x9e3779b97f4a7c15u;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
  return value ^ (value >> 31);
}

/// A hash of a name (FNV-1a, mixed): no defence against chosen names.
constexpr std::uint64_t HashName(std::string_view name) {
  std::uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return Mix(hash);
}

/// Fisher-Yates.
template <typename T>
void Shuffle(std::vector<T>& items, std::uint64_t seed) {
  for (std::size_t left = items.size(); left > 1; --left) {
    seed = Mix(seed);
    std::swap(items[left - 1], items[seed % left]);
  }
}

}  // namespace rouse
