// The engine socket: accepts the ranks and the cores of one pod's engine and answers them.
//
// One thread ("engine-socket") polls all connections, so a client that sends nonsense, never reads,
// or dies costs its own connection and nothing else: every wait has a deadline, every size a bound,
// and at most one answer a connection is kept.

#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "agent/engine/host.h"
#include "common/result.h"

namespace rouse::agent {

struct EngineServerLimits {
  std::size_t max_connections = 128;
  std::chrono::milliseconds hello_deadline{30'000};  ///< To an accepted Hello or Attach.
  /// How long a Hello waits for a settled offer: about as long as the agent looks for a peer, and
  /// less than the plugin waits for an answer (connector/rouse_vllm/session.py).
  std::chrono::milliseconds settle_deadline{110'000};
  std::chrono::milliseconds send_deadline{10'000};  ///< For a client to take its answer.
};

class EngineServer {
 public:
  /// Listens on `path`. `host` must outlive the server.
  static Result<std::unique_ptr<EngineServer>> Start(const std::string& path, EngineHost& host,
                                                     const EngineServerLimits& limits = {});
  /// Ends all connections, then unlinks the path.
  ~EngineServer();

  /// Weights have arrived, are on their way now, or will not come, or there is a command: what
  /// waits for that is looked at again. From any thread.
  void Wake();

 private:
  class Loop;
  explicit EngineServer(std::unique_ptr<Loop> loop);

  std::unique_ptr<Loop> loop_;
};

}  // namespace rouse::agent
