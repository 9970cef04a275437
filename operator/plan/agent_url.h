// Where agents find the operator. Pure.

#pragma once

#include <cstdint>
#include <string>

#include "common/json.h"
#include "common/result.h"

namespace rouse::plan {

/// The URL of the operator's Service by its address (a pod may have no DNS): its ClusterIP and its
/// port named "agents", or `port` when it has none of that name. FailedPrecondition says what to
/// change about a Service that has no address.
Result<std::string> AgentFacingUrl(const json::Json& service, const std::string& name,
                                   std::uint16_t port);

}  // namespace rouse::plan
