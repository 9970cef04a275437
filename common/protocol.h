// What begins each of our JSON messages: which protocol it speaks, and its version. It is checked
// first, so that two programs that do not fit refuse each other with both versions in the message.

#pragma once

#include <string_view>

#include "common/json.h"

namespace rouse {

/// An object that speaks protocol/version and says nothing yet.
json::Json Envelope(std::string_view protocol, int version);

/// FailedPrecondition, naming both sides' versions, unless the document speaks protocol/version.
Status CheckProtocol(json::Reader& in, std::string_view protocol, int version);

}  // namespace rouse
