#include "agent/server/resting_weights.h"

#include <utility>

#include "agent/server/rank_name.h"

namespace rouse::agent {
namespace {

std::string WhatDiffers(const WeightManifest& before, const WeightManifest& now) {
  if (const auto differences = IdentityDifferences(before.identity, now.identity);
      !differences.empty()) {
    return "their identity differs from what slept: " + differences.front();
  }
  if (before.form != now.form) return "form differs from what slept";
  if (before.arena_bytes != now.arena_bytes) {
    return "arenaBytes: " + std::to_string(now.arena_bytes) + ", what slept had " +
           std::to_string(before.arena_bytes);
  }
  if (before.allocations != now.allocations) return "allocations lie otherwise than what slept";
  if (before.tensors != now.tensors) return "tensors lie otherwise than what slept";
  return "";
}

}  // namespace

RestingWeights::RestingWeights(std::map<std::uint32_t, WeightManifest> ranks)
    : ranks_(std::move(ranks)) {
  for (auto& [number, manifest] : ranks_) {
    manifest.chunk_digests.clear();
    manifest.scalars = json::Json::object();
  }
}

Status RestingWeights::OnReleased(std::uint32_t rank) {
  if (!ranks_.contains(rank)) {
    return NotFound(RankName(rank) + " had no weights here");
  }
  released_.insert(rank);
  return {};
}

Status RestingWeights::Fits(const WeightManifest& manifest, std::size_t ranks) const {
  const auto before = ranks_.find(manifest.rank);
  if (before == ranks_.end() || ranks != ranks_.size()) {
    return FailedPrecondition("ranks: " + std::to_string(ranks) + ", what slept had " +
                              std::to_string(ranks_.size()));
  }
  const std::string differs = WhatDiffers(before->second, manifest);
  if (differs.empty()) return {};
  return FailedPrecondition(RankName(manifest.rank) + ": " + differs);
}

}  // namespace rouse::agent
