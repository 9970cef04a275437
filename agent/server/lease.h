// A lease on a peer's weights: opened, renewed in the background, closed at the end.

#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "common/http.h"
#include "common/peer_messages.h"
#include "common/result.h"

namespace rouse::agent {

class Lease {
 public:
  /// POST /v1/weights/open of the peer that `client` reaches. FailedPrecondition: the peer serves
  /// another launch, or speaks another version. Unavailable: it cannot be reached, or has nothing
  /// complete to serve yet.
  static Result<std::unique_ptr<Lease>> Open(
      std::unique_ptr<http::Client> client, const OpenRequest& request,
      std::chrono::milliseconds timeout = std::chrono::seconds(10));
  /// Closes the lease at the peer, waiting a second for it at most.
  ~Lease();

  /// What the peer handed out.
  const OpenResponse& opened() const { return opened_; }

  /// Renews on a thread of its own ("lease") until destroyed; `on_lost` is called there, once, when
  /// the peer does not know the lease any more or has not answered for its whole duration.
  void KeepAlive(std::function<void(const Status&)> on_lost);

 private:
  Lease(std::unique_ptr<http::Client> client, OpenResponse opened)
      : client_(std::move(client)), opened_(std::move(opened)) {}

  std::unique_ptr<http::Client> client_;
  OpenResponse opened_;
  std::jthread renewer_;
};

/// POST /v1/weights/stage of the peer that `client` reaches; ends within `timeout`.
Result<RemoteSlab> Stage(http::Client& client, const StageRequest& request,
                         std::chrono::milliseconds timeout);

}  // namespace rouse::agent
