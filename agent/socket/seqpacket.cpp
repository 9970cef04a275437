#include "agent/socket/seqpacket.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

namespace rouse::agent {
namespace {

/// SCM_MAX_FD of the kernel: room for all that can arrive, so that what we refuse is closed by us
/// and a message with too many descriptors is told from one with the right number.
constexpr std::size_t kKernelMaxFds = 253;

Result<sockaddr_un> Address(const std::string& path, socklen_t* length) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path) {
    return InvalidArgument("socket path \"" + path + "\" must have 1 to " +
                           std::to_string(sizeof address.sun_path - 1) + " bytes");
  }
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  *length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path.size() + 1);
  return address;
}

bool PeerGone(int error) {
  return error == EPIPE || error == ECONNRESET || error == ENOTCONN || error == ECONNREFUSED;
}

std::vector<OwnedFd> TakeFds(msghdr* message) {
  std::vector<OwnedFd> fds;
  for (cmsghdr* header = CMSG_FIRSTHDR(message); header != nullptr;
       header = CMSG_NXTHDR(message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(header) + i * sizeof fd, sizeof fd);
      fds.emplace_back(fd);
    }
  }
  return fds;
}

}  // namespace

Result<SeqpacketListener> SeqpacketListener::Listen(const std::string& path) {
  socklen_t length = 0;
  ROUSE_ASSIGN_OR_RETURN(const sockaddr_un address, Address(path, &length));
  struct stat info {};
  if (::lstat(path.c_str(), &info) == 0) {
    if (!S_ISSOCK(info.st_mode)) {
      return Status(StatusCode::kAlreadyExists,
                    "socket path " + path + " is there and is no socket; remove it");
    }
    ::unlink(path.c_str());
  }
  OwnedFd fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return FromErrno(errno, "create a socket");
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), length) != 0) {
    return FromErrno(errno, "bind socket " + path);
  }
  SeqpacketListener listener(std::move(fd), path);
  if (::chmod(path.c_str(), 0666) != 0) return FromErrno(errno, "chmod socket " + path);
  if (::listen(listener.fd(), 16) != 0) return FromErrno(errno, "listen on socket " + path);
  return listener;
}

SeqpacketListener::~SeqpacketListener() {
  if (fd_.valid()) ::unlink(path_.c_str());
}

Result<OwnedFd> SeqpacketListener::Accept() {
  OwnedFd fd(::accept4(fd_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (fd.valid()) return fd;
  if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED) return fd;
  return FromErrno(errno, "accept on socket " + path_);
}

Result<OwnedFd> SeqpacketDial(const std::string& path, bool non_blocking) {
  socklen_t length = 0;
  ROUSE_ASSIGN_OR_RETURN(const sockaddr_un address, Address(path, &length));
  const int flags = SOCK_SEQPACKET | SOCK_CLOEXEC | (non_blocking ? SOCK_NONBLOCK : 0);
  OwnedFd fd(::socket(AF_UNIX, flags, 0));
  if (!fd.valid()) return FromErrno(errno, "create socket");
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), length) != 0) {
    return FromErrno(errno, "connect to socket " + path);
  }
  return fd;
}

Result<std::optional<SeqpacketMessage>> SeqpacketReceive(int socket) {
  SeqpacketMessage received;
  std::array<char, kMaxMessageBytes> body;  // Not filled: most messages are short.
  iovec part{body.data(), body.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kKernelMaxFds)];
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  ssize_t got = 0;
  do {
    got = ::recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
  } while (got < 0 && errno == EINTR);
  if (got < 0) {
    if (errno == EAGAIN) return std::optional<SeqpacketMessage>();
    if (PeerGone(errno)) return Unavailable("connection closed by its other end");
    return FromErrno(errno, "receive from a connection");
  }
  received.fds = TakeFds(&message);
  // A message of no bytes is told from the end of the connection by nothing but its descriptors.
  if (got == 0 && received.fds.empty()) {
    return Unavailable("connection closed by its other end");
  }
  if ((message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0 || received.fds.size() > kMaxMessageFds) {
    received.fds.clear();
    received.oversized = true;
  } else {
    received.body.assign(body.data(), static_cast<std::size_t>(got));
  }
  return std::optional<SeqpacketMessage>(std::move(received));
}

Result<bool> SeqpacketSend(int socket, std::string_view body, const std::vector<int>& fds) {
  if (body.size() > kMaxMessageBytes || fds.size() > kMaxMessageFds) {
    return Status(StatusCode::kResourceExhausted, "message of " + std::to_string(body.size()) +
                                                      " bytes and " + std::to_string(fds.size()) +
                                                      " descriptors is over the protocol's bounds");
  }
  iovec part{const_cast<char*>(body.data()), body.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kMaxMessageFds)] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (!fds.empty()) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(sizeof(int) * fds.size());
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int) * fds.size());
    std::memcpy(CMSG_DATA(header), fds.data(), sizeof(int) * fds.size());
  }
  ssize_t sent = 0;
  do {
    sent = ::sendmsg(socket, &message, MSG_NOSIGNAL);
  } while (sent < 0 && errno == EINTR);
  if (sent >= 0) return true;
  if (errno == EAGAIN) return false;
  if (PeerGone(errno)) return Unavailable("connection closed by its other end");
  return FromErrno(errno, "send on a connection");
}

int SeqpacketPeerPid(int socket) {
  ucred peer{};
  socklen_t size = sizeof peer;
  return ::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 ? peer.pid : -1;
}

}  // namespace rouse::agent
