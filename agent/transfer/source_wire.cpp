#include "agent/transfer/source_wire.h"

#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <vector>

namespace rouse::transfer {
namespace {

constexpr std::size_t kMaxMessage = 64u << 10;

}  // namespace

Status WireSend(int socket, const json::Json& body, int fd) {
  std::string text = json::Dump(body);
  iovec part = {.iov_base = text.data(), .iov_len = text.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message = {};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (fd >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), &fd, sizeof(fd));
  }
  ssize_t sent = 0;
  do {
    sent = ::sendmsg(socket, &message, MSG_NOSIGNAL);
  } while (sent < 0 && errno == EINTR);
  if (sent >= 0) return {};
  if (errno == EPIPE || errno == ECONNRESET)
    return Unavailable("the weight source process is gone");
  return FromErrno(errno, "send to the weight source process");
}

Result<std::optional<WireMessage>> WireReceive(int socket) {
  std::vector<char> text(kMaxMessage);
  iovec part = {.iov_base = text.data(), .iov_len = text.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message = {};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  ssize_t got = 0;
  do {
    got = ::recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
  } while (got < 0 && errno == EINTR);
  if (got == 0 || (got < 0 && errno == ECONNRESET)) return std::optional<WireMessage>();
  if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
    return DeadlineExceeded("the weight source process does not answer");
  }
  if (got < 0) return FromErrno(errno, "receive from the weight source process");
  WireMessage out;
  if (const cmsghdr* header = CMSG_FIRSTHDR(&message);
      header != nullptr && header->cmsg_type == SCM_RIGHTS) {
    int fd = -1;
    std::memcpy(&fd, CMSG_DATA(header), sizeof(fd));
    out.fd = memory::OwnedFd(fd);
  }
  ROUSE_ASSIGN_OR_RETURN(out.body,
                         json::Parse({text.data(), static_cast<std::size_t>(got)},
                                     "message of the weight source process", kMaxMessage));
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
