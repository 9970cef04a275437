// A bundle whose files are in this agent's store, as it is handed out.

#pragma once

#include <compare>
#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "agent/state/placement.h"
#include "agent/state/state_messages.h"
#include "agent/state/state_store.h"

namespace rouse::agent {

/// What a bundle is asked for by.
struct BundleKey {
  CacheClass of = CacheClass::kMatched;
  std::string fingerprint;

  auto operator<=>(const BundleKey&) const = default;
};

struct HeldBundle {
  Bundle bundle;
  BundleRank rank;                             ///< Its digest is of the list of its files.
  std::map<std::string, std::uint64_t> files;  ///< Bytes by digest.

  BundleKey key() const { return {bundle.of, bundle.fingerprint}; }
};

std::shared_ptr<const HeldBundle> MakeHeld(Bundle bundle);

/// Whether all of its files are in the store.
bool IsWhole(const StateStore& store, const HeldBundle& held);

/// The pieces' bytes, one after the other. NotFound for files that are not of `held`.
Result<std::string> ReadPieces(const StateStore& store, const HeldBundle& held,
                               const StateRead& read);

}  // namespace rouse::agent
