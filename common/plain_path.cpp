#include "common/plain_path.h"

#include <algorithm>

namespace rouse {

std::vector<std::string> PathParts(std::string_view path) {
  std::vector<std::string> parts;
  std::size_t start = 0;
  while (start <= path.size()) {
    const std::size_t end = std::min(path.find('/', start), path.size());
    parts.emplace_back(path.substr(start, end - start));
    start = end + 1;
  }
  return parts;
}

bool IsPlainPath(std::string_view path, std::size_t max_part) {
  if (path.empty() || path.size() > 1024) return false;
  for (const std::string& part : PathParts(path)) {
    if (part.empty() || part == "." || part == ".." || part.size() > max_part) return false;
    for (const char c : part) {
      if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f || c == '\\') return false;
    }
  }
  return true;
}

}  // namespace rouse
