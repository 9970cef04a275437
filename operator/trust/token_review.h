// Which pod a token is of, as the API server says it. Pure.

#pragma once

#include <string>

#include "common/json.h"
#include "common/result.h"

namespace rouse::trust {

using json::Json;

/// The pod that a token is bound to. Its deletion makes the token void.
struct TokenPod {
  std::string ns;
  std::string name;
  std::string uid;

  bool operator==(const TokenPod&) const = default;
};

/// The TokenReview that asks about `token`, of the audience of Rouse's own.
Json TokenReviewOf(const std::string& token);

/// What the answered TokenReview says. PermissionDenied when the token is none, of another
/// audience, or bound to no pod.
Result<TokenPod> PodOf(const Json& review);

}  // namespace rouse::trust
