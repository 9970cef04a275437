// An engine of one core and one rank that sleeps and wakes as it is told, over the real socket:
// what the plugin does, without vLLM. Misbehaves where a test asks it to.

#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "agent/tests/fake_engine.h"

namespace rouse::agent {

class SleepingEngine {
 public:
  /// How it does what it is told; to be changed before it is told.
  enum class Manner {
    kAsTold,
    kDrains,  ///< Takes as long to fall asleep as its requests may.
    kFails,   ///< Says that it could not.
    kHangs,   ///< Never says anything.
    kKeeps,   ///< Is done without giving its arena up.
    kDies,    ///< Ends its connections instead.
  };

  /// `rank` has its weights, from whoever; its slabs are `slabs`.
  SleepingEngine(const std::string& socket, FakeEngine rank, std::vector<OwnedFd> slabs);
  /// Ends its connections.
  ~SleepingEngine();

  void SetManner(Manner manner) { manner_ = manner; }
  int sleeps() const { return sleeps_; }
  int wakes() const { return wakes_; }
  /// Graphs that it has yet to capture, of so many, and commands to capture some that it was given.
  static constexpr int kGraphs = 7;
  int graphs_left() const { return graphs_left_; }
  int captures() const { return captures_; }
  /// The weights that it woke with last.
  std::string bytes() const;
  std::string error() const;
  /// Closes its connections, as if it had been killed.
  void Die();

 private:
  void Run(const std::stop_token& stop);
  void Obey(const json::Json& command, const std::stop_token& stop);
  Status Sleep();
  Status Wake(const std::stop_token& stop);

  FakeEngine rank_;
  FakeEngine core_;
  std::vector<OwnedFd> slabs_;  ///< Kept open while it computes with them, as mappings are.
  std::atomic<Manner> manner_{Manner::kAsTold};
  std::atomic<int> sleeps_{0};
  std::atomic<int> wakes_{0};
  std::atomic<int> graphs_left_{kGraphs};
  std::atomic<int> captures_{0};
  mutable std::mutex mutex_;
  std::string bytes_;
  std::string error_;
  std::jthread thread_;
};

}  // namespace rouse::agent
