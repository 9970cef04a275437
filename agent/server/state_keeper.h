// Keeps copies of bundles for other instances of the namespace, and sees to it that others keep
// those of this one (docs/state-reuse.md).
//
// Whoever holds a bundle asks its places (agent/state/placement.h) again and again to keep a copy;
// a place that lacks it fetches it from the asker. So copies are repaired by whoever has one left,
// whenever the operator's list of agents changes, and nothing needs to be remembered about it. A
// copy is given up when this agent has not been one of its bundle's places for a while and all of
// them say that they have it, when nobody has used the bundle for a week, or when one that was used
// later needs the room.
//
// Threads: "keeper" asks and fetches. Offer, Find and HandOver may be called on any. One lock
// guards what they share.

#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "agent/server/metrics.h"
#include "agent/server/peer_clients.h"
#include "agent/state/held_bundle.h"
#include "agent/state/kept_bundles.h"
#include "agent/state/placement.h"
#include "agent/state/state_messages.h"
#include "agent/state/state_store.h"
#include "common/http.h"
#include "common/messages.h"

namespace rouse::agent {

struct StateKeeperOptions {
  std::string pod;
  StateStoreOptions store;  ///< The same folder as that of the instance's own, and another owner.
  /// How often it looks whether there is something to do.
  std::chrono::milliseconds look{1'000};
  /// How often places are asked whether they have it still, and after which a fetch that has failed
  /// may be tried again.
  std::chrono::milliseconds recheck{30'000};
  /// How long a copy has to be one too many before it is given up: all agents hear of a change of
  /// the list in that time.
  std::chrono::milliseconds surplus{60'000};
  std::chrono::seconds unused{7 * 24 * 3600};
  /// For one bundle; the next try goes on where it ended.
  std::chrono::milliseconds transfer_deadline{120'000};
};

struct StateKeeperHooks {
  /// nullopt while the operator has not said.
  std::function<std::optional<LiveKeepers>()> live;
  PeerClients::Dial dial;
  /// What this instance holds of its own caches.
  std::function<std::vector<std::shared_ptr<const HeldBundle>>()> own;
};

class StateKeeper {
 public:
  static Result<std::unique_ptr<StateKeeper>> Create(StateKeeperOptions options, Metrics& metrics,
                                                     StateKeeperHooks hooks);
  ~StateKeeper();

  void Begin();
  /// Ends the thread; no hook is called any more.
  void Stop();

  /// Another agent asks for a copy to be kept. Unavailable from one that the operator has not named
  /// yet, when this agent leaves, or when it could not be fetched a moment ago; ResourceExhausted
  /// when there is no room.
  Result<KeepAnswer> Offer(const KeepRequest& offer);
  /// What is kept for others; nullptr when it is not kept.
  std::shared_ptr<const HeldBundle> Find(const BundleKey& key) const { return kept_.Find(key); }

  /// From now on this agent is no place of anything. Waits until all that it holds has its copies
  /// elsewhere, at most `longest`; whether they have, or nobody is known who could.
  bool HandOver(std::chrono::milliseconds longest);

 private:
  using Clock = std::chrono::steady_clock;

  /// A bundle that is to have copies: one's own, or kept.
  struct Copied {
    KeptBundle bundle;
    bool own = false;
  };
  /// What a place has said last of a bundle.
  struct Said {
    std::string digest;   ///< What it was asked for...
    std::string address;  ///< ...and where.
    bool held = false;
    Clock::time_point at;
    Clock::time_point ask_again;
    std::string problem;
  };
  struct Failure {
    std::string problem;
    Clock::time_point again;
  };

  StateKeeper(StateKeeperOptions options, Metrics& metrics, StateKeeperHooks hooks,
              std::unique_ptr<StateStore> store);
  void Run(const std::stop_token& stop);
  void Tend(const std::stop_token& stop);
  std::vector<Copied> AllCopied(std::size_t own_copies) const;
  /// How many of its copies are missing.
  std::size_t TendOne(const Copied& copied, const LiveKeepers& live, std::set<std::string>& silent);
  std::set<std::string> Holding(const HeldBundle& held, const std::vector<Keeper>& places) const;
  void Ask(const KeptBundle& bundle, const Keeper& place, std::set<std::string>& silent);
  void NoteAnswer(const KeptBundle& bundle, const Keeper& place, const Result<KeepAnswer>& answer,
                  Said& said);
  void Judge(const BundleKey& key, const KeepStep& step);
  void FetchOne(const std::stop_token& stop);
  Status Fetch(const KeepRequest& offer, const std::stop_token& stop);
  void GiveUp(const BundleKey& key, std::string_view why);
  void Write();

  const StateKeeperOptions options_;
  Metrics& metrics_;
  const StateKeeperHooks hooks_;
  const std::unique_ptr<StateStore> store_;
  KeptBundles kept_;
  std::atomic<bool> leaving_{false};

  std::mutex mutex_;
  std::condition_variable_any changed_;
  std::map<BundleKey, KeepRequest> pending_;  ///< Guarded: to be fetched.
  /// Guarded: fetches of a moment ago, by bundle and pod.
  std::map<std::pair<BundleKey, std::string>, Failure> failed_;
  bool handed_over_ = false;  ///< Guarded: since it leaves.

  // Of the thread.
  std::map<std::pair<BundleKey, std::string>, Said> said_;  ///< By bundle and pod.
  std::map<BundleKey, Clock::time_point> surplus_since_;    ///< Of what is kept.
  PeerClients clients_;
  std::set<std::string> passed_over_;  ///< Pods, when it leaves.
  Clock::time_point written_;
  std::jthread thread_;
};

}  // namespace rouse::agent
