// The engine's caches as files below the state folder: what is there, put into a store; what a
// bundle lists, put there out of a store.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "agent/state/bundle.h"
#include "agent/state/state_store.h"
#include "common/result.h"

namespace rouse::agent {

/// What is there of a class at one moment: entries without digests, sorted by path. Two that are
/// equal say that nobody has written in between.
using CacheSnapshot = std::vector<BundleEntry>;

/// What is looked at.
struct CacheScope {
  CacheClass of = CacheClass::kMatched;
  /// Whether vLLM's plan of its memory is among it: one made without graphs does not fit others.
  bool startup_plan = true;
};

/// Looks at every file of the class. What StaysBehind, what is no regular file or link, and links
/// that a bundle may not have are left out. ResourceExhausted when it is more than a bundle may
/// have.
Result<CacheSnapshot> LookAtCaches(const std::string& state_folder, const CacheScope& scope);

/// Copies the files of `snapshot` into the store, and puts the bundle there if nothing has changed
/// when all are copied: otherwise Unavailable, and no bundle. `before` is what was published last,
/// or empty: its files that have not changed are not read again.
Result<Bundle> PublishCaches(const StateStore& store, const std::string& state_folder,
                             const CacheScope& scope, const std::string& fingerprint,
                             const CacheSnapshot& snapshot, const Bundle& before);

struct InstallOutcome {
  std::size_t files = 0;
  std::uint64_t bytes = 0;
  std::vector<std::string> kept;  ///< Roots that were there already and stay as they are.
};

/// Puts the bundle's files below the state folder: every root appears as a whole, by a rename. A
/// root that is there already is left alone. Files' digests are checked: DataLoss, and the file is
/// discarded from the store, when one is wrong. Requires a Hold on the store.
Result<InstallOutcome> InstallCaches(const StateStore& store, const Bundle& bundle,
                                     const std::string& state_folder);

}  // namespace rouse::agent
