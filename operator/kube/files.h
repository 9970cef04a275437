// Small files that configuration is made of.

#pragma once

#include <cstddef>
#include <string>

#include "common/result.h"

namespace rouse::kube {

/// The whole file. NotFound, FailedPrecondition (no right to read) or ResourceExhausted (larger
/// than `max_bytes`) name the file.
Result<std::string> ReadFile(const std::string& path, std::size_t max_bytes = 1u << 20);

/// A bearer token as it may go into a header: trimmed; InvalidArgument when it is empty or has
/// characters that no token has, such as a line break in the middle.
Result<std::string> CheckToken(std::string text, const std::string& what);

}  // namespace rouse::kube
