// Who may ask an agent for what. Pure.

#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "common/result.h"
#include "common/tls/identity.h"

namespace rouse::agent {

/// How a request came.
enum class Port {
  kOnly,     ///< Plain HTTP of an agent without certificates: everybody may ask for everything.
  kPlain,    ///< Probes and metrics.
  kTrusted,  ///< Mutual TLS: all that is under /v1/.
};

/// Whether `who` may ask for `path` of an agent of namespace `own`: the operator what it is to be,
/// agents of the same namespace its weights and files. PermissionDenied and FailedPrecondition say
/// who may, and where.
Status MayAsk(Port port, std::string_view path, const std::optional<tls::Identity>& who,
              const std::string& own);

/// A message may not name another requester than the certificate does.
Status CheckRequester(const std::string& requester, const std::optional<tls::Identity>& who);

}  // namespace rouse::agent
