// Base64 (RFC 4648 §4, with padding), for binary values inside JSON.

#pragma once

#include <string>
#include <string_view>

#include "common/result.h"

namespace rouse {

std::string Base64Encode(std::string_view bytes);

/// InvalidArgument names `what` when `text` is not canonical base64. Line breaks are not accepted.
Result<std::string> Base64Decode(std::string_view text, std::string_view what);

}  // namespace rouse
