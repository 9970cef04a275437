#include "operator/plan/agent_url.h"

#include "common/host_in_url.h"
#include "operator/plan/objects.h"

namespace rouse::plan {

Result<std::string> AgentFacingUrl(const Json& service, const std::string& name,
                                   std::uint16_t port) {
  const Json& spec = At(service, "spec");
  const std::string ip = Text(spec, "clusterIP");
  if (ip.empty() || ip == "None") {
    return FailedPrecondition("service " + name +
                              " has no ClusterIP: give it one, or set --agent-facing-url");
  }
  std::int64_t number = port;
  for (const Json& entry : At(spec, "ports")) {
    const Json& given = At(entry, "port");
    if (Text(entry, "name") == "agents" && given.is_number_integer()) number = given;
  }
  return "https://" + HostInUrl(ip) + ":" + std::to_string(number);
}

}  // namespace rouse::plan
