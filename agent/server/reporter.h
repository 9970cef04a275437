// Tells the operator how this instance is, and keeps what it answered.
//
// One thread ("report"). While the operator is away everything goes on, and reports are tried again
// with growing, jittered pauses.

#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "agent/state/placement.h"
#include "common/http.h"
#include "common/messages.h"
#include "common/result.h"

namespace rouse::agent {

class Reporter {
 public:
  /// `client` reaches the operator. `begin` waits until there is somebody to report as, or the
  /// thread shall stop; `make` builds the report of this moment, `on_sent` hears of each attempt.
  /// All are called on the reporter's thread.
  struct Hooks {
    std::function<void(const std::stop_token&)> begin;
    std::function<AgentReport()> make;
    std::function<void(const Status&)> on_sent;
  };
  Reporter(std::unique_ptr<http::Client> client, Hooks hooks);
  ~Reporter();

  /// Something has changed: report soon.
  void Changed();

  /// The peers of the operator's last answer, best first.
  std::vector<Peer> peers() const;
  /// Whether there may come to be others, by the same answer.
  bool expecting() const;
  /// The other instances of this launch, by the same answer; nullopt before the first one.
  std::optional<std::vector<Sibling>> siblings() const;
  /// All that keep compile caches in the namespace, by the same answer; nullopt before the first.
  std::optional<LiveKeepers> keepers() const;

 private:
  void Run(const std::stop_token& stop);
  AgentReport Make(const std::stop_token& stop);
  Status Send(const AgentReport& report);

  const std::unique_ptr<http::Client> client_;
  const Hooks hooks_;
  mutable std::mutex mutex_;
  std::condition_variable_any changed_;
  bool pending_ = true;
  std::optional<AgentState> told_;  ///< What the operator knows; nullopt before its first answer.
  Assignment assignment_;
  std::jthread thread_;
};

}  // namespace rouse::agent
