#include "agent/engine/document.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "common/write_all.h"

namespace rouse::agent {

Result<memory::OwnedFd> MakeDocument(std::string_view content, const std::string& name) {
  memory::OwnedFd fd(::memfd_create(name.c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd.valid()) return FromErrno(errno, "create document " + name);
  ROUSE_RETURN_IF_ERROR(WriteAll(fd.get(), content, "document " + name));
  if (::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) !=
      0) {
    return FromErrno(errno, "seal document " + name);
  }
  return fd;
}

Result<std::string> ReadDocument(int fd, std::uint64_t bytes) {
  struct stat info {};
  if (::fstat(fd, &info) != 0) return FromErrno(errno, "look at the document");
  // Only memory has seals: reading it never waits for a disk, a network or another process.
  if (!S_ISREG(info.st_mode) || ::fcntl(fd, F_GET_SEALS) < 0) {
    return InvalidArgument("the descriptor beside the message is no memfd");
  }
  if (static_cast<std::uint64_t>(info.st_size) != bytes) {
    return InvalidArgument("the document has " + std::to_string(info.st_size) + " bytes, " +
                           std::to_string(bytes) + " were announced");
  }
  std::string content(bytes, '\0');
  std::size_t done = 0;
  while (done < bytes) {
    const ssize_t got = ::pread(fd, content.data() + done, bytes - done, static_cast<off_t>(done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return FromErrno(errno, "read the document");
    if (got == 0) return InvalidArgument("the document shrank while it was read");
    done += static_cast<std::size_t>(got);
  }
  return content;
}

}  // namespace rouse::agent
