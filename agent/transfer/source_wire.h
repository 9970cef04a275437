// Messages between Publisher and its source process. Private to agent/transfer.

#pragma once

#include <optional>

#include "agent/memory/owned_fd.h"
#include "common/json.h"
#include "common/result.h"

namespace rouse::transfer {

struct WireMessage {
  json::Json body;
  memory::OwnedFd fd;  ///< May be none.
};

/// Sends one message, with `fd` beside it unless it is -1. Unavailable when the other side is gone.
/// The socket is a blocking one.
Status WireSend(int socket, const json::Json& body, int fd = -1);

/// Waits for one message; nullopt when the other side has closed. DeadlineExceeded after the
/// socket's receive timeout.
Result<std::optional<WireMessage>> WireReceive(int socket);

/// Body of a failed answer, and the Status in a body that may be one.
json::Json WireError(const Status& status);
Status WireStatus(const json::Json& body);

}  // namespace rouse::transfer
