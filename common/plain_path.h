// Relative paths that cannot lead anywhere but below the folder they are put behind. Pure.

#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace rouse {

/// Whether `path` is relative and plain: no empty, "." or ".." part, no control character or
/// backslash, at most 1024 bytes in all and `max_part` in one part.
bool IsPlainPath(std::string_view path, std::size_t max_part = 200);

/// The parts between the slashes; at least one, which may be empty.
std::vector<std::string> PathParts(std::string_view path);

}  // namespace rouse
