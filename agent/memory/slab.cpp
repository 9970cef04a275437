#include "agent/memory/slab.h"

#include <fcntl.h>

#include <cerrno>

namespace rouse::memory {

Result<OwnedFd> Slab::DuplicateFd() const {
  const int copy = ::fcntl(fd(), F_DUPFD_CLOEXEC, 0);
  if (copy < 0) return FromErrno(errno, "duplicate the descriptor of a slab");
  return OwnedFd(copy);
}

}  // namespace rouse::memory
