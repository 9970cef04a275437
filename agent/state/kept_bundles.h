// What an agent keeps for others: bundles in its store, and what is known of their use. It is
// written beside them (kept_list.h), so that it is known after a restart, and so that agents on one
// folder of a node know how much of it they keep together.
//
// Thread-safe.

#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "agent/state/held_bundle.h"
#include "agent/state/state_store.h"

namespace rouse::agent {

struct KeptBundle {
  std::shared_ptr<const HeldBundle> held;
  std::uint32_t copies = 0;     ///< That there are to be.
  std::int64_t used_at_us = 0;  ///< When an instance that it is made for was last known to live.
};

/// Far more than there are in use; bounds memory.
inline constexpr std::size_t kMaxKept = 256;
inline constexpr std::size_t kMaxKeptEntries = 4 * kMaxBundleEntries;
/// Of the store, so that there is always room for the instance's own.
inline constexpr std::uint64_t kShareOfStore = 2;
/// What was used so long before what is to be kept makes room for it. Instances that live say so
/// every half a minute: theirs does not.
inline constexpr std::int64_t kOutOfUseUs = INT64_C(600) * 1'000'000;

class KeptBundles {
 public:
  /// Takes over what `options.owner` has kept before, as far as `store` has it still. Both are of
  /// the same folder; `store` must outlive it.
  KeptBundles(const StateStore& store, StateStoreOptions options);

  std::shared_ptr<const HeldBundle> Find(const BundleKey& key) const;
  std::vector<KeptBundle> All() const;

  /// Somebody has said how many copies there are to be, and when it was used last: what was used
  /// later counts. What is kept, and known of it now; nullopt when it is not kept.
  std::optional<KeptBundle> Hear(const BundleKey& key, std::uint32_t copies,
                                 std::int64_t used_at_us);

  struct Wanted {
    BundleKey key;
    std::uint64_t bytes = 0;
    std::size_t entries = 0;
    std::int64_t used_at_us = 0;
  };
  /// What has to go for it, those used longest ago first; nullopt: there is no room.
  std::optional<std::vector<BundleKey>> RoomFor(const Wanted& wanted) const;

  void Add(KeptBundle kept);
  void Remove(const BundleKey& key);
  /// Writes the list, and looks what others on this folder keep. To be called after a change, and
  /// every kKeptWrittenS.
  Status Write();

  struct Size {
    std::size_t bundles = 0;
    std::uint64_t bytes = 0;
  };
  Size size() const;

 private:
  const StateStoreOptions options_;

  mutable std::mutex mutex_;
  std::map<BundleKey, KeptBundle> kept_;             ///< Guarded.
  std::map<std::string, std::uint64_t> by_anybody_;  ///< Guarded: bytes by fingerprint, of all.
};

}  // namespace rouse::agent
