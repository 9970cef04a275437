// Fetching a bundle's files from a peer into the store.

#pragma once

#include <chrono>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "agent/state/state_messages.h"
#include "agent/state/state_store.h"
#include "common/http.h"
#include "common/messages.h"

namespace rouse::agent {

/// How the peer stands to a bundle, and the bundle when it holds it. A bundle of another class or
/// fingerprint than was asked for is InvalidArgument.
Result<StateAnswer> AskForBundle(http::Client& peer, CacheClass of, const std::string& fingerprint);

struct FoundBundle {
  Keeper holder;
  Bundle bundle;
};
/// The first of `order` that holds the bundle. Those in `without` are not asked, and whoever cannot
/// be asked is passed over. `dial` gives a client, or nullptr.
std::optional<FoundBundle> FindBundle(const std::vector<Keeper>& order, CacheClass of,
                                      const std::string& fingerprint,
                                      const std::set<std::string>& without,
                                      const std::function<http::Client*(const Keeper&)>& dial);

/// Asks an agent to keep a copy of what this one holds.
Result<KeepAnswer> AskToKeep(http::Client& keeper, const KeepRequest& request);

struct FetchOutcome {
  Status status;
  std::uint64_t bytes = 0;  ///< That came over the network.
};

/// Fetches what the store lacks of the bundle's files; what an earlier attempt has left is gone on
/// with. The bundle itself is not put into the store. Requires a Hold. Ends early with Cancelled or
/// DeadlineExceeded, and what has come is kept.
FetchOutcome FetchBundle(http::Client& peer, const StateStore& store, const Bundle& bundle,
                         std::chrono::steady_clock::time_point until,
                         const std::function<bool()>& cancelled);

}  // namespace rouse::agent
