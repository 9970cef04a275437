#include "agent/trust/access.h"

namespace rouse::agent {

Status MayAsk(Port port, std::string_view path, const std::optional<tls::Identity>& who,
              const std::string& own) {
  if (port == Port::kOnly) return {};
  const bool trusted = path.starts_with("/v1/");
  const std::string what(path.substr(0, 128));
  if (port == Port::kPlain) {
    return trusted ? FailedPrecondition(what + " is answered over mutual TLS only, on the port " +
                                        "that this agent reports")
                   : Status();
  }
  if (!trusted) return NotFound(what + " is on the port of probes and metrics");
  if (!who) return PermissionDenied(what + " needs a certificate");
  if (path == "/v1/role") {
    if (who->kind == tls::Identity::Kind::kOperator) return {};
    return PermissionDenied("only the operator may say what an instance is to be, not " +
                            tls::Describe(*who));
  }
  if (tls::Matches(tls::Agent(own, ""), *who)) return {};
  return PermissionDenied("weights and files are given to agents of namespace " + own +
                          " only, not to " + tls::Describe(*who));
}

Status CheckRequester(const std::string& requester, const std::optional<tls::Identity>& who) {
  if (!who || requester == who->pod_namespace + "/" + who->pod) return {};
  return PermissionDenied("the requester is said to be " + requester + ", but is " +
                          tls::Describe(*who));
}

}  // namespace rouse::agent
