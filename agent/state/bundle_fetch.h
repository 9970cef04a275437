// Fetching a bundle's files from a peer into the store.

#pragma once

#include <chrono>
#include <functional>

#include "agent/state/state_messages.h"
#include "agent/state/state_store.h"
#include "common/http.h"

namespace rouse::agent {

/// How the peer stands to a bundle, and the bundle when it holds it. A bundle of another class or
/// fingerprint than was asked for is InvalidArgument.
Result<StateAnswer> AskForBundle(http::Client& peer, CacheClass of, const std::string& fingerprint);

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
