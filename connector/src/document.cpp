// Documents in sealed memfds.

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "connector/src/error.h"
#include "connector/src/rouse_connector.h"

using rouse::connector::Fail;

int rouse_document_create(const void* document, size_t bytes) {
  if (document == nullptr && bytes > 0) return Fail(EINVAL, "no document given");
  int fd = memfd_create("rouse-document", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) return Fail(errno, "cannot create a memfd");
  const char* next = static_cast<const char*>(document);
  size_t left = bytes;
  while (left > 0) {
    ssize_t written = write(fd, next, left);
    if (written < 0) {
      if (errno == EINTR) continue;
      int error = errno;
      close(fd);
      return Fail(error, "cannot write a document of %zu bytes", bytes);
    }
    next += written;
    left -= static_cast<size_t>(written);
  }
  if (fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) < 0) {
    int error = errno;
    close(fd);
    return Fail(error, "cannot seal a document of %zu bytes", bytes);
  }
  return fd;
}

int rouse_document_read(int fd, void* document, size_t bytes) {
  struct stat info {};
  if (fstat(fd, &info) < 0) return Fail(errno, "cannot look at the document in descriptor %d", fd);
  if (static_cast<size_t>(info.st_size) != bytes) {
    return Fail(EINVAL, "the document has %lld bytes, %zu were announced",
                static_cast<long long>(info.st_size), bytes);
  }
  char* next = static_cast<char*>(document);
  size_t done = 0;
  while (done < bytes) {
    ssize_t got = pread(fd, next + done, bytes - done, static_cast<off_t>(done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return Fail(errno, "cannot read the document");
    if (got == 0) return Fail(EINVAL, "the document shrank to %zu bytes while it was read", done);
    done += static_cast<size_t>(got);
  }
  return 0;
}
