// The starts and wakes of a ModelService's instances, from two sources: each pod's annotation tells
// of its last one, with what ran beside the phases; the status of the ModelService tells of the
// last ten that became replicas, also of pods that are gone. Pure.

#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "common/timeline.h"
#include "operator/kubectl/view.h"

namespace rouse::kubectl {

struct Start {
  std::string pod;
  std::string uid;
  std::string path;    ///< "Storage", "Peer", "Wake".
  std::string reason;  ///< Why the better paths were not taken, or why this guard was woken.
  TimePoint decided_at;
  enum class End { kFirstToken, kNone, kFailed };
  End end = End::kFirstToken;
  /// From the decision to the first token; of one that has not come to it: until now.
  std::int64_t total_us = 0;
  std::string doing;         ///< What one without a first token is at, or why it failed.
  std::vector<Span> phases;  ///< Partition [0, total_us]; none of one without a first token.
  std::vector<Span> lanes;
  std::map<std::string, std::int64_t> bytes_by_source;
  bool gone = false;  ///< The pod is not there any more.
};

/// Oldest first.
std::vector<Start> StartsOf(const ServiceView& view, TimePoint now);

/// The last one of the pod with this uid; nullptr when it has none: it was stopped before it
/// served.
const Start* LastStart(const std::vector<Start>& starts, const std::string& uid);

/// "323.9 MB from peers"; empty when none are known. May hold any text of the API server's.
std::string SourcesOf(const Start& start);

/// {"modelService": {...}, "starts": [...]}.
Json ToJson(const ServiceView& view, const std::vector<Start>& starts);

}  // namespace rouse::kubectl
