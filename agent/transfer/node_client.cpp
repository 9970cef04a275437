#include "agent/transfer/node_client.h"

#include <poll.h>

namespace rouse::transfer {

using std::chrono::milliseconds;

Result<NodeClient> NodeClient::Dial(const std::string& path) {
  auto socket = agent::SeqpacketDial(path, true);
  if (!socket.ok()) return Unavailable(socket.status().message());
  return NodeClient(*std::move(socket));
}

Result<agent::SeqpacketMessage> NodeClient::Ask(const json::Json& question, TimePoint until) const {
  // The socket's buffer is empty: question and answer alternate.
  ROUSE_ASSIGN_OR_RETURN(const bool sent,
                         agent::SeqpacketSend(socket_.get(), json::Dump(question), {}));
  if (!sent) return Unavailable("it does not read");
  for (;;) {
    const auto left = std::chrono::ceil<milliseconds>(until - std::chrono::steady_clock::now());
    if (left.count() <= 0) return DeadlineExceeded("no answer in time");
    pollfd polled{socket_.get(), POLLIN, 0};
    ::poll(&polled, 1, static_cast<int>(left.count()));
    ROUSE_ASSIGN_OR_RETURN(auto message, agent::SeqpacketReceive(socket_.get()));
    if (!message) continue;
    if (message->oversized) return InvalidArgument("its answer is over the protocol's bounds");
    return *std::move(message);
  }
}

}  // namespace rouse::transfer
