// Reuse of what engines compile: puts caches in place before the engine starts, publishes them once
// it serves, hands them to peers, and tells whether they were used (docs/state-reuse.md).
//
// Threads: "state" (looks for bundles, then publishes), and that of StateKeeper. Answer, Read, Keep
// and OnCacheUse may be called on any thread. One lock guards what they share.

#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "agent/engine/cache_use.h"
#include "agent/server/metrics.h"
#include "agent/server/peer_clients.h"
#include "agent/server/state_keeper.h"
#include "agent/state/cache_tree.h"
#include "agent/state/held_bundle.h"
#include "agent/state/hydration.h"
#include "agent/state/placement.h"
#include "agent/state/state_messages.h"
#include "agent/state/state_store.h"
#include "common/http.h"
#include "common/messages.h"

namespace rouse::agent {

struct StateReuseOptions {
  std::string folder;  ///< What the engine's caches lie below; empty: they are not reused.
  StateStoreOptions store;
  std::string engine_identity;  ///< Reusable caches are shared by whoever has an equal one...
  std::string launch_identity;  ///< ...and matched ones by an equal one of these.
  std::string pod;
  std::int64_t decided_at_us = 0;
  /// Without installed caches an instance that is not the first one fails.
  bool required = false;
  /// False where graphs are captured late: the engine's plan of its memory lacks them then.
  bool startup_plan = true;
  HydrationLimits limits;
  std::chrono::milliseconds transfer_deadline{120'000};
  /// How long the caches must not have changed before they are published.
  std::chrono::milliseconds settle{2'000};
  /// How copies are kept; `pod` and `store` are filled in.
  StateKeeperOptions keeper;
  /// Names of the GPUs' models that this process sees. Called on the thread, may take a while.
  std::function<std::vector<std::string>()> gpus = [] { return std::vector<std::string>(); };
};

struct StateReuseHooks {
  /// The other instances of this launch; nullopt while that is not known.
  std::function<std::optional<std::vector<Sibling>>()> siblings;
  /// All that keep caches in the namespace; nullopt while that is not known.
  std::function<std::optional<LiveKeepers>()> keepers;
  /// A client to that pod at that address, which has shown that it is it where there are
  /// certificates.
  PeerClients::Dial dial;
  /// The engine may start: caches are in place, or it has to do without. An error: it may not.
  std::function<void(const Status&)> on_settled;
  std::function<void()> on_change;  ///< origin() or miss() has changed.
};

class StateReuse {
 public:
  /// Opens the store.
  static Result<std::unique_ptr<StateReuse>> Create(StateReuseOptions options, Metrics& metrics,
                                                    StateReuseHooks hooks);
  ~StateReuse();

  /// Starts the thread. With `look` false nothing is installed, because an engine runs already, and
  /// on_settled is not called.
  void Begin(bool look);
  /// Ends the thread; no hook is called any more.
  void Stop();

  /// From now on the engine serves, or does not any more.
  void SetServing(bool serving) { serving_ = serving; }
  void OnCacheUse(const CacheUseRequest& use);

  /// For peers: of this instance's own caches, and of what is kept for others.
  StateAnswer Answer(CacheClass of, const std::string& fingerprint) const;
  Result<std::string> Read(const StateRead& read) const;
  Result<KeepAnswer> Keep(const KeepRequest& offer);
  /// This agent ends: waits until what it holds has its copies elsewhere, at most `longest`.
  void HandOver(std::chrono::milliseconds longest);

  /// Whether matched caches were put in place before the engine started.
  bool installed() const;
  /// "from demo-0", or "none: ..."; empty while that is open.
  std::string origin() const;
  std::string miss() const;

 private:
  /// One class of caches. Written by the thread only, with the lock held where others read it.
  struct Slot {
    CacheClass of = CacheClass::kMatched;
    std::string fingerprint;
    StateStanding standing = StateStanding::kHydrating;
    std::shared_ptr<const HeldBundle> held;
    bool installed = false;
    std::string origin;
    // Read by the thread alone:
    std::set<std::string> failed_pods;
    std::chrono::steady_clock::time_point ask_keepers_at;
    std::optional<CacheSnapshot> last_look;
    std::string last_problem;
  };

  StateReuse(StateReuseOptions options, Metrics& metrics, StateReuseHooks hooks,
             std::unique_ptr<StateStore> store);
  void Run(const std::stop_token& stop, bool look);
  void Hydrate(const std::stop_token& stop);
  void TryStore(Slot& slot);
  /// Asks the others, and takes what one has: the slot is installed then, unless that failed.
  HydrationStep Advance(Slot& slot, const std::stop_token& stop);
  /// From a keeper, if one has it: installed then.
  std::optional<hydration::Take> TakeFromKeepers(Slot& slot, const std::vector<Sibling>& asked,
                                                 const std::stop_token& stop);
  void TakeFrom(Slot& slot, const std::string& pod, http::Client& client, const Bundle& bundle,
                const std::stop_token& stop);
  Status Install(Slot& slot, const Bundle& bundle, const std::string& from);
  void Settle(Slot& slot, const std::string& why_not);
  void PublishWhenSettled(Slot& slot);
  void Hold(Slot& slot, Bundle bundle);
  std::shared_ptr<const HeldBundle> Held(const BundleKey& key) const;
  std::vector<std::shared_ptr<const HeldBundle>> Own() const;
  Result<CacheSnapshot> Look(CacheClass of) const;

  const StateReuseOptions options_;
  Metrics& metrics_;
  const StateReuseHooks hooks_;
  const std::unique_ptr<StateStore> store_;
  std::chrono::steady_clock::time_point began_;
  std::atomic<bool> serving_{false};

  mutable std::mutex mutex_;
  std::array<Slot, 2> slots_;                    ///< Guarded, but for what is the thread's.
  std::map<std::uint32_t, std::string> misses_;  ///< Guarded: by rank, of its last start.

  // Of the thread.
  PeerClients clients_;
  std::map<std::string, Bundle> offered_;  ///< By class and pod, as held.
  std::jthread thread_;

  std::unique_ptr<StateKeeper> keeper_;
};

}  // namespace rouse::agent
