// What peers ask of an agent about bundles: /v1/state/... (docs/protocols.md §2).

#pragma once

#include <string>

#include "agent/server/state_reuse.h"
#include "common/http.h"

namespace rouse::agent {

/// Answers a request for `what`, the path behind /v1/state/. `own_namespace` is this agent's;
/// `failed`: its instance cannot come up, so it will not have what it lacks. Thread-safe.
http::Response AnswerAboutState(StateReuse& state, const http::Request& request,
                                const std::string& what, const std::string& own_namespace,
                                bool failed);

}  // namespace rouse::agent
