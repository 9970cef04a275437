// Writing to a descriptor until everything is written.

#pragma once

#include <unistd.h>

#include <cerrno>
#include <string>
#include <string_view>

#include "common/result.h"

namespace rouse {

/// Writes all of `content` to an open file; an error says "write `what`".
inline Status WriteAll(int fd, std::string_view content, const std::string& what) {
  std::size_t done = 0;
  while (done < content.size()) {
    const ssize_t wrote = ::write(fd, content.data() + done, content.size() - done);
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote < 0) return FromErrno(errno, "write " + what);
    done += static_cast<std::size_t>(wrote);
  }
  return Status();
}

}  // namespace rouse
