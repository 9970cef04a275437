// Which bundles an agent keeps for others, written beside them in the store: so that it knows after
// a restart, and others on the same folder do not take them away.
//
//   FOLDER/kept/OWNER.json

#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "agent/state/held_bundle.h"
#include "common/result.h"

namespace rouse::agent {

struct KeptEntry {
  BundleKey key;
  std::uint64_t bytes = 0;
  std::uint32_t copies = 0;     ///< That there are to be.
  std::int64_t used_at_us = 0;  ///< When an instance that it is made for was last known to live.

  bool operator==(const KeptEntry&) const = default;
};

/// Its owner writes it at least this often...
inline constexpr std::int64_t kKeptWrittenS = 60;
/// ...and one that was not written for so long is of an agent that is gone.
inline constexpr std::int64_t kKeptGoneS = 600;

Status WriteKept(const std::string& store_folder, const std::string& owner,
                 const std::vector<KeptEntry>& kept);
/// Empty when there is none, or none that can be read.
std::vector<KeptEntry> ReadKept(const std::string& store_folder, const std::string& owner);

/// What is in the lists of all agents on this folder: bytes by fingerprint. Lists of those that are
/// gone are removed; what is no list counts for nothing. An error when one could not be read now:
/// then it is not known what they keep.
Result<std::map<std::string, std::uint64_t>> KeptByAnybody(const std::string& store_folder);

}  // namespace rouse::agent
