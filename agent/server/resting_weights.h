// What is left of weights while their engine sleeps: who they were and how they lay, and which
// ranks' engines have let go of them.
//
// Pure; the store's lock guards it.

#pragma once

#include <cstdint>
#include <map>
#include <set>

#include "common/manifest.h"
#include "common/result.h"

namespace rouse::agent {

class RestingWeights {
 public:
  /// The manifests of all ranks.
  explicit RestingWeights(std::map<std::uint32_t, WeightManifest> ranks);

  /// The rank's engine has nothing of its arena mapped any more. NotFound for a rank that had none.
  Status OnReleased(std::uint32_t rank);
  bool all_released() const { return released_.size() == ranks_.size(); }

  /// Whether an engine that computed with these weights can go on with those: of the same identity,
  /// at the same places. FailedPrecondition names what differs.
  Status Fits(const WeightManifest& manifest, std::size_t ranks) const;

  /// From now on weights may arrive; none will.
  void Wake() { stage_ = Stage::kWaking; }
  void Lose() { stage_ = Stage::kLost; }
  bool sleeps() const { return stage_ == Stage::kSleeping; }
  /// Whether the rank's weights may still come.
  bool Expects(std::uint32_t rank) const { return stage_ != Stage::kLost && ranks_.contains(rank); }

 private:
  enum class Stage { kSleeping, kWaking, kLost };

  std::map<std::uint32_t, WeightManifest> ranks_;  ///< Without digests and scalars.
  std::set<std::uint32_t> released_;
  Stage stage_ = Stage::kSleeping;
};

}  // namespace rouse::agent
