// SHA-256 over bytes and files, as lower-case hex.

#pragma once

#include <string>
#include <string_view>

#include "common/result.h"

namespace rouse {

/// SHA-256 of `bytes`, 64 hex digits.
std::string Sha256Hex(std::string_view bytes);

/// Whether `text` is one as it is written here: 64 lower-case hex digits.
bool IsSha256Hex(std::string_view text);

/// SHA-256 of what can be read from `fd` from its current offset on; does not close it.
Result<std::string> Sha256OfFile(int fd, std::string_view name);

}  // namespace rouse
