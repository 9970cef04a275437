// Agents' reuse of caches in one process: real stores, real HTTP on loopback. What the operator
// would say of who is there is set by the test.

#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "agent/server/state_reuse.h"
#include "agent/tests/temp_folder.h"
#include "common/http.h"
#include "common/messages.h"

namespace rouse::agent {

/// The list of agents that the operator has.
class NamedAgents {
 public:
  explicit NamedAgents(std::size_t copies) : copies_(copies) {}

  LiveKeepers Live() const;
  std::vector<Keeper> Now() const { return Live().keepers; }
  void Put(const Keeper& keeper);
  void Remove(const std::string& pod);

 private:
  const std::size_t copies_;
  mutable std::mutex mutex_;
  std::map<std::string, Keeper> keepers_;
};

/// One agent of a launch of its own, whose engine has compiled. It is named as soon as it is there.
class ServingAgent {
 public:
  struct Options {
    std::uint64_t store_bytes = UINT64_C(1) << 30;
    std::chrono::milliseconds recheck{3'000};
    std::chrono::milliseconds surplus{6'000};
  };
  ServingAgent(NamedAgents& named, const std::string& name, const Options& options);
  ServingAgent(NamedAgents& named, const std::string& name)
      : ServingAgent(named, name, Options()) {}
  ~ServingAgent();

  /// Of its own caches, which are its own alone.
  static BundleKey KeyOf(const std::string& name, CacheClass of = CacheClass::kMatched);
  bool Holds(const BundleKey& key) const;

  /// It is going to end, and sees to it that what it has is elsewhere.
  void Leave();
  StateReuse& state() { return *state_; }
  const StateReuse& state() const { return *state_; }
  /// The value of this line of its metrics.
  double Metric(const std::string& line) const;

 private:
  Keeper Named(bool leaving) const;

  NamedAgents& named_;
  const std::string name_;
  TempFolder folder_;
  Metrics metrics_;
  std::unique_ptr<StateReuse> state_;
  std::unique_ptr<http::Server> server_;
};

}  // namespace rouse::agent
