#include "operator/actuate/agents.h"

#include <algorithm>

namespace rouse::actuate {
namespace {

/// Agents are told something seldom, and each connection takes about 0.2 MB: enough for those that
/// are being told, and are told again soon.
constexpr std::size_t kMaxClients = 64;
/// Whoever takes longer is told over a connection that is opened then.
constexpr std::chrono::milliseconds kConnect{500};

}  // namespace

Result<std::shared_ptr<http::Client>> HttpAgents::ClientFor(const AgentName& agent) {
  const std::string key = agent.uid + " " + agent.address;
  const std::lock_guard lock(mutex_);
  const auto found = std::find_if(clients_.begin(), clients_.end(),
                                  [&](const auto& each) { return each.first == key; });
  if (found != clients_.end()) {
    clients_.splice(clients_.begin(), clients_, found);
    return found->second;
  }
  ROUSE_ASSIGN_OR_RETURN(
      std::shared_ptr<http::Client> client,
      http::Client::Create(agent.address,
                           http::MutualTls{.credentials = credentials_,
                                           .peer = tls::Agent(agent.ns, agent.pod, agent.uid)}));
  clients_.emplace_front(key, client);
  if (clients_.size() > kMaxClients) clients_.pop_back();
  return client;
}

void HttpAgents::Connect(const AgentName& agent) {
  const auto client = ClientFor(agent);
  if (client.ok()) static_cast<void>((*client)->Connect(std::min(kConnect, timeout_)));
}

Result<RoleResponse> HttpAgents::TellRole(const AgentName& agent, const RoleRequest& request) {
  constexpr std::size_t kMaxAnswer = 64 << 10;
  ROUSE_ASSIGN_OR_RETURN(const auto client, ClientFor(agent));
  http::Request post{.method = "POST",
                     .target = "/v1/role",
                     .headers = {{"Content-Type", "application/json"}},
                     .body = json::Dump(ToJson(request)),
                     .timeout = timeout_,
                     .deadline = timeout_};
  ROUSE_ASSIGN_OR_RETURN(const http::Response answer, client->Send(post, kMaxAnswer));
  if (answer.status != 202) return http::ToStatus(answer, "POST " + agent.address + "/v1/role");
  ROUSE_ASSIGN_OR_RETURN(const json::Json body, json::Parse(answer.body, "role", kMaxAnswer));
  return RoleResponseFromJson(body);
}

}  // namespace rouse::actuate
