#include "operator/plan/agent_url.h"

namespace rouse::plan {
namespace {

using json::Json;

const Json& At(const Json& value, const char* key) {
  static const Json none;
  if (!value.is_object()) return none;
  const auto found = value.find(key);
  return found == value.end() ? none : *found;
}

std::string Text(const Json& value) {
  return value.is_string() ? value.get<std::string>() : std::string();
}

}  // namespace

Result<std::string> AgentFacingUrl(const Json& service, const std::string& name,
                                   std::uint16_t port) {
  const Json& spec = At(service, "spec");
  const std::string ip = Text(At(spec, "clusterIP"));
  if (ip.empty() || ip == "None") {
    return FailedPrecondition("service " + name +
                              " has no ClusterIP: give it one, or set --agent-facing-url");
  }
  std::int64_t number = port;
  for (const Json& entry : At(spec, "ports")) {
    const Json& given = At(entry, "port");
    if (Text(At(entry, "name")) == "agents" && given.is_number_integer()) number = given;
  }
  const std::string host = ip.find(':') == std::string::npos ? ip : "[" + ip + "]";
  return "https://" + host + ":" + std::to_string(number);
}

}  // namespace rouse::plan
