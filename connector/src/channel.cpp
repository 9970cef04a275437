// Connecting, sending and receiving on the engine socket.

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <ctime>

#include "connector/src/error.h"
#include "connector/src/rouse_connector.h"

namespace rouse::connector {
namespace {

constexpr size_t kMaxFds = ROUSE_MAX_MESSAGE_FDS;
constexpr int kConnectRetryMs = 20;

int64_t NowMs() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<int64_t>(now.tv_sec) * 1000 + now.tv_nsec / 1000000;
}

/// A point in time to count down to; "never" for a negative timeout.
class Deadline {
 public:
  explicit Deadline(int timeout_ms) : at_ms_(timeout_ms < 0 ? -1 : NowMs() + timeout_ms) {}

  /// What poll() takes: -1 for never, 0 once it has passed.
  int RemainingMs() const {
    if (at_ms_ < 0) return -1;
    return static_cast<int>(std::clamp<int64_t>(at_ms_ - NowMs(), 0, INT32_MAX));
  }

 private:
  int64_t at_ms_;
};

/// Waits until the socket is ready for `events`: 0, -ETIMEDOUT, -EINTR or another error.
int Wait(int socket, short events, const Deadline& deadline) {
  pollfd entry{socket, events, 0};
  int ready = poll(&entry, 1, deadline.RemainingMs());
  if (ready < 0) return -errno;
  if (ready == 0) return -ETIMEDOUT;
  // POLLHUP and POLLERR are left to the call that follows, which names the reason.
  if (entry.revents & POLLNVAL) return -EBADF;
  return 0;
}

/// The descriptors beside a received message. Closes those that nobody took.
class ReceivedFds {
 public:
  ReceivedFds() = default;
  ReceivedFds(const ReceivedFds&) = delete;
  ReceivedFds& operator=(const ReceivedFds&) = delete;
  ~ReceivedFds() {
    for (size_t i = 0; i < count_; ++i) close(fds_[i]);
  }

  void CollectFrom(msghdr* header) {
    for (cmsghdr* c = CMSG_FIRSTHDR(header); c != nullptr; c = CMSG_NXTHDR(header, c)) {
      if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
      size_t bytes = c->cmsg_len - CMSG_LEN(0);
      for (size_t at = 0; at + sizeof(int) <= bytes; at += sizeof(int)) {
        int fd = -1;
        std::memcpy(&fd, CMSG_DATA(c) + at, sizeof(fd));
        if (count_ < kMaxFds) {
          fds_[count_++] = fd;
        } else {
          close(fd);
        }
      }
    }
  }

  size_t count() const { return count_; }

  /// Hands all of them to the caller.
  void TakeInto(int* fds) {
    std::copy(fds_, fds_ + count_, fds);
    count_ = 0;
  }

 private:
  int fds_[kMaxFds] = {};
  size_t count_ = 0;
};

}  // namespace
}  // namespace rouse::connector

using rouse::connector::Deadline;
using rouse::connector::Fail;
using rouse::connector::kMaxFds;
using rouse::connector::ReceivedFds;
using rouse::connector::Wait;

int rouse_connect(const char* path, int timeout_ms) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  size_t length = path == nullptr ? 0 : std::strlen(path);
  if (length == 0) return Fail(EINVAL, "the path of the engine socket is empty");
  if (length >= sizeof(address.sun_path)) {
    return Fail(ENAMETOOLONG,
                "the path of the engine socket is %zu bytes long, at most %zu fit: %.100s...",
                length, sizeof(address.sun_path) - 1, path);
  }
  std::memcpy(address.sun_path, path, length + 1);

  Deadline deadline(timeout_ms);
  while (true) {
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return Fail(errno, "cannot create a socket");
    int result;
    do {
      result = connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address));
    } while (result < 0 && errno == EINTR);
    if (result == 0) return fd;
    int error = errno;
    close(fd);
    // Not there yet, not listening yet, or more callers than it takes at once: all pass.
    bool may_pass = error == ENOENT || error == ECONNREFUSED || error == EAGAIN;
    if (!may_pass) return Fail(error, "cannot connect to the engine socket %s", path);
    if (deadline.RemainingMs() == 0) {
      char reason[128];
      return Fail(ETIMEDOUT, "no agent took a connection at the engine socket %s within %d ms (%s)",
                  path, timeout_ms, strerror_r(error, reason, sizeof(reason)));
    }
    int pause = deadline.RemainingMs();
    poll(nullptr, 0,
         pause < 0 ? rouse::connector::kConnectRetryMs
                   : std::min(pause, rouse::connector::kConnectRetryMs));
  }
}

int rouse_send(int socket, const void* message, size_t bytes, const int* fds, size_t fd_count,
               int timeout_ms) {
  if (bytes == 0 || message == nullptr) return Fail(EINVAL, "an empty message cannot be sent");
  if (bytes > ROUSE_MAX_MESSAGE_BYTES || fd_count > kMaxFds) {
    return Fail(EMSGSIZE,
                "a message of %zu bytes and %zu descriptors exceeds the limits of %d and %d", bytes,
                fd_count, ROUSE_MAX_MESSAGE_BYTES, ROUSE_MAX_MESSAGE_FDS);
  }
  iovec part{const_cast<void*>(message), bytes};
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kMaxFds)] = {};
  if (fd_count > 0) {
    header.msg_control = control;
    header.msg_controllen = CMSG_SPACE(sizeof(int) * fd_count);
    cmsghdr* rights = CMSG_FIRSTHDR(&header);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof(int) * fd_count);
    std::memcpy(CMSG_DATA(rights), fds, sizeof(int) * fd_count);
  }
  Deadline deadline(timeout_ms);
  while (true) {
    ssize_t sent = sendmsg(socket, &header, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent >= 0) return 0;
    if (errno == EINTR) continue;
    if (errno != EAGAIN) return Fail(errno, "cannot send %zu bytes to the agent", bytes);
    int waited = Wait(socket, POLLOUT, deadline);
    if (waited < 0 && waited != -EINTR) {
      return Fail(-waited, "the agent took no message within %d ms", timeout_ms);
    }
  }
}

int rouse_receive(int socket, void* message, size_t capacity, size_t* bytes, int* fds,
                  size_t fd_capacity, size_t* fd_count, int timeout_ms) {
  if (message == nullptr || bytes == nullptr || fd_count == nullptr ||
      (fds == nullptr && fd_capacity > 0)) {
    return Fail(EINVAL, "rouse_receive needs a buffer and places for the counts");
  }
  *bytes = 0;
  *fd_count = 0;
  Deadline deadline(timeout_ms);
  iovec part{message, capacity};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kMaxFds)];
  while (true) {
    msghdr header{};
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    header.msg_control = control;
    header.msg_controllen = sizeof(control);
    ssize_t received = recvmsg(socket, &header, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (received < 0) {
      if (errno == EAGAIN || errno == EINTR) {
        int waited = Wait(socket, POLLIN, deadline);
        if (waited < 0)
          return Fail(-waited, "no answer came from the agent within %d ms", timeout_ms);
        continue;
      }
      return Fail(errno, "cannot receive from the agent");
    }
    ReceivedFds arrived;
    arrived.CollectFrom(&header);
    if (header.msg_flags & MSG_TRUNC) {
      return Fail(EMSGSIZE, "the agent's message is longer than the %zu bytes there is room for",
                  capacity);
    }
    if ((header.msg_flags & MSG_CTRUNC) || arrived.count() > fd_capacity) {
      return Fail(EMSGSIZE, "the agent's message brings more than %zu descriptors",
                  std::min(fd_capacity, kMaxFds));
    }
    if (received == 0) return Fail(ECONNRESET, "the agent closed the connection");
    *bytes = static_cast<size_t>(received);
    *fd_count = arrived.count();
    arrived.TakeInto(fds);
    return 0;
  }
}
