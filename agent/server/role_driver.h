// Puts the instance to sleep and wakes it: does what RoleMachine (agent/startup/role.h) decides.
//
// Threads: "role" does what takes time, "wake-pull" pulls. Every method from any thread; hooks are
// called without a lock.

#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "agent/server/commands.h"
#include "agent/server/weights.h"
#include "agent/startup/role.h"
#include "common/result.h"

namespace rouse::agent {

struct RoleSettings {
  RoleLimits limits;
  /// How long requests under way may take before the engine sleeps.
  std::chrono::milliseconds drain{30'000};
  /// How long peers that still read the weights may take.
  std::chrono::milliseconds leases{5'000};
};

/// The first token of a canary, and whether its answer was that of before.
struct CanaryResult {
  Status status;
  std::int64_t first_token_us = 0;
};

struct RoleHooks {
  /// Why it cannot sleep or wake now; Ok when it can.
  std::function<Status()> ready_to_sleep;
  std::function<Status()> ready_to_wake;
  /// Brings all weights from these peers into the store.
  std::function<Status(const std::vector<Peer>&, const std::stop_token&)> pull;
  /// Before it sleeps; what goes wrong is the hook's to tell.
  std::function<void()> record_canary;
  std::function<CanaryResult()> ask_canary;
  /// State or message may have changed.
  std::function<void()> on_change;
  /// What is given to ranks may have changed.
  std::function<void()> on_weights;
  /// A command was carried out.
  std::function<void(CommandKind, const CommandValues&)> on_done;
  /// Sleeping or Waking has ended after so long; `to` is what it has become.
  std::function<void(RoleState from, RoleState to, double seconds)> on_ended;
};

class RoleDriver {
 public:
  /// Store, commands and what the hooks use must outlive it, or its Stop.
  RoleDriver(const RoleSettings& settings, WeightStore& store, Commands& commands, RoleHooks hooks);
  ~RoleDriver();
  RoleDriver(const RoleDriver&) = delete;
  RoleDriver& operator=(const RoleDriver&) = delete;

  /// Begins it; errors as RoleMachine's Sleep and Wake.
  Status Ask(const RoleRequest& request);
  /// Something has happened that RoleMachine knows of.
  void Apply(const RoleEvent& happened);
  void AddLane(const std::string& name, std::int64_t start_us, std::int64_t end_us);
  /// It can do nothing any more, for a reason of before its time.
  void FailAtOnce(const std::string& why);

  RoleStanding standing() const;
  bool active() const { return standing().state == RoleState::kActive; }

  /// Ends its threads. It goes on to know its state.
  void Stop();

 private:
  void Run(const std::stop_token& stop);
  void Perform(RoleAction action, const std::stop_token& stop);
  void Command(CommandKind kind, std::chrono::milliseconds limit);
  void Change(const std::function<void()>& change);

  const RoleSettings settings_;
  WeightStore& store_;
  Commands& commands_;
  const RoleHooks hooks_;
  mutable std::mutex mutex_;
  std::condition_variable_any changed_;
  RoleMachine machine_;
  std::chrono::steady_clock::time_point asked_;  ///< Guarded: when what is under way was begun.
  bool pending_ = false;
  std::jthread pull_;
  std::jthread thread_;  // last: it uses all of the above
};

}  // namespace rouse::agent
