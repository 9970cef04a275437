// A question and its answer over a node's socket. Private to agent/transfer.

#pragma once

#include <chrono>
#include <string>

#include "agent/memory/owned_fd.h"
#include "agent/socket/seqpacket.h"
#include "common/json.h"
#include "common/result.h"

namespace rouse::transfer {

class NodeClient {
 public:
  using TimePoint = std::chrono::steady_clock::time_point;

  /// Unavailable when nobody listens at `path`.
  static Result<NodeClient> Dial(const std::string& path);

  /// Unavailable, DeadlineExceeded, or InvalidArgument for an answer over the protocol's bounds.
  Result<agent::SeqpacketMessage> Ask(const json::Json& question, TimePoint until) const;

 private:
  explicit NodeClient(memory::OwnedFd socket) : socket_(std::move(socket)) {}

  memory::OwnedFd socket_;
};

}  // namespace rouse::transfer
