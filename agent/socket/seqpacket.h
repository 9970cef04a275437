// Unix sockets that carry one message at a time, with descriptors beside it (SCM_RIGHTS).
//
// The only file of the agent that names calls of Unix sockets. Every descriptor that arrives
// is owned from the moment it arrives, so nothing a peer sends can leak one; every size is bounded
// before memory is used. Accepted sockets are non-blocking.
//
// Threads: an object belongs to one thread. Nothing here throws.

#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "agent/memory/owned_fd.h"
#include "common/result.h"

namespace rouse::agent {

/// Largest message and most descriptors of docs/protocols.md §3 and §6.
inline constexpr std::size_t kMaxMessageBytes = 128u << 10;
inline constexpr std::size_t kMaxMessageFds = 64;

using memory::OwnedFd;

/// One message as it arrived.
struct SeqpacketMessage {
  std::string body;
  std::vector<OwnedFd> fds;
  /// The message was longer than kMaxMessageBytes, or had more than kMaxMessageFds descriptors;
  /// body and fds are empty then, and what had arrived is closed already.
  bool oversized = false;
};

/// A listening socket in the file system. Unlinks its path on destruction.
class SeqpacketListener {
 public:
  /// Binds `path` and lets every user connect (the engine's user is the image's choice).
  /// A stale socket of an earlier agent is replaced; a path that is something else than a socket is
  /// AlreadyExists, one longer than 107 bytes InvalidArgument.
  static Result<SeqpacketListener> Listen(const std::string& path);
  SeqpacketListener(SeqpacketListener&&) noexcept = default;
  SeqpacketListener& operator=(SeqpacketListener&&) noexcept = default;
  ~SeqpacketListener();

  int fd() const { return fd_.get(); }

  /// The next waiting connection; an invalid OwnedFd when there is none.
  Result<OwnedFd> Accept();

 private:
  SeqpacketListener(OwnedFd fd, std::string path) : fd_(std::move(fd)), path_(std::move(path)) {}

  OwnedFd fd_;
  std::string path_;
};

/// Connects to a listener; the socket is non-blocking if `non_blocking`.
Result<OwnedFd> SeqpacketDial(const std::string& path, bool non_blocking = false);

/// The next message; nullopt when none has arrived. Unavailable when the peer is gone.
Result<std::optional<SeqpacketMessage>> SeqpacketReceive(int socket);

/// Sends one message; false when the peer's buffer is full. Unavailable when the peer is gone,
/// ResourceExhausted when `body` or `fds` exceed the bounds above.
Result<bool> SeqpacketSend(int socket, std::string_view body, const std::vector<int>& fds);

/// The process at the other end, for logs; -1 when it is unknown (another PID namespace gives 0).
int SeqpacketPeerPid(int socket);

}  // namespace rouse::agent
