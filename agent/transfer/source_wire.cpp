#include "agent/transfer/source_wire.h"

#include <string>
#include <utility>
#include <vector>

#include "agent/socket/seqpacket.h"

namespace rouse::transfer {

Status WireSend(int socket, const json::Json& body, int fd) {
  const auto sent = agent::SeqpacketSend(socket, json::Dump(body),
                                         fd >= 0 ? std::vector<int>{fd} : std::vector<int>());
  if (!sent.ok()) return sent.status().WithContext("send to the weight source process");
  return *sent ? Status() : Unavailable("the weight source process does not read");
}

Result<std::optional<WireMessage>> WireReceive(int socket) {
  auto received = agent::SeqpacketReceive(socket);
  if (received.status().code() == StatusCode::kUnavailable) return std::optional<WireMessage>();
  if (!received.ok()) {
    return received.status().WithContext("receive from the weight source process");
  }
  if (!*received) return DeadlineExceeded("the weight source process does not answer");
  agent::SeqpacketMessage& message = **received;
  WireMessage out;
  ROUSE_ASSIGN_OR_RETURN(out.body,
                         json::Parse(message.body, "message of the weight source process"));
  if (!message.fds.empty()) out.fd = std::move(message.fds.front());
  return std::optional<WireMessage>(std::move(out));
}

json::Json WireError(const Status& status) {
  return {{"code", ToString(status.code())}, {"message", status.message()}};
}

Status WireStatus(const json::Json& body) {
  if (!body.contains("code")) return {};
  json::Reader in(body, "error");
  const std::string code = in.String("code");
  const std::string message = in.String("message");
  ROUSE_RETURN_IF_ERROR(in.status());
  return Status(ParseStatusCode(code).value_or(StatusCode::kInternal), message);
}

}  // namespace rouse::transfer
