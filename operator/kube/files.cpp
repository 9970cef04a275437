#include "operator/kube/files.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace rouse::kube {

Result<std::string> ReadFile(const std::string& path, std::size_t max_bytes) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return FromErrno(errno, "read " + path);
  std::string content;
  char buffer[16384];
  while (true) {
    const ssize_t got = read(file, buffer, sizeof buffer);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      const Status status = FromErrno(errno, "read " + path);
      close(file);
      return status;
    }
    if (got == 0) break;
    content.append(buffer, static_cast<std::size_t>(got));
    if (content.size() > max_bytes) {
      close(file);
      return Status(StatusCode::kResourceExhausted,
                    "read " + path + ": larger than " + std::to_string(max_bytes) + " bytes");
    }
  }
  close(file);
  return content;
}

Result<std::string> CheckToken(std::string text, const std::string& what) {
  const auto is_space = [](char c) { return c == ' ' || c == '\n' || c == '\r' || c == '\t'; };
  while (!text.empty() && is_space(text.back())) text.pop_back();
  text.erase(text.begin(), std::find_if_not(text.begin(), text.end(), is_space));
  if (text.empty()) return InvalidArgument(what + " is empty");
  const bool printable =
      std::all_of(text.begin(), text.end(), [](char c) { return c > 0x20 && c < 0x7f; });
  if (!printable) {
    return InvalidArgument(what +
                           " has white space or unprintable characters inside; a token is "
                           "one word");
  }
  return text;
}

}  // namespace rouse::kube
