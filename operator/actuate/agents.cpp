#include "operator/actuate/agents.h"

#include <pthread.h>

#include <algorithm>
#include <cstddef>

namespace rouse::actuate {
namespace {

/// Agents are told something seldom. A connection takes 25 kB and a descriptor, and its handshake 3
/// ms of a processor: enough for all that are kept and those that are being told beside them.
constexpr std::size_t kMaxClients = 576;
/// Of them, for those that are kept connected. All others wait for a handshake: of a hundred guards
/// that are told at once, the last ones for a second. Room for 500 guards, a quarter of the pods
/// that the operator is measured with; 13 MB and, after a start, three seconds.
constexpr std::size_t kMaxKept = 512;
/// An agent closes a connection after two minutes of silence, or when it ends.
constexpr std::chrono::seconds kLookAgain{15};
/// Whoever takes longer is told over a connection that is opened then.
constexpr std::chrono::milliseconds kConnect{500};

// The first of each ModelService before the second of any.
std::vector<AgentName> ChooseKept(const std::map<std::string, std::vector<AgentName>>& all) {
  std::vector<AgentName> chosen;
  bool more = true;
  for (std::size_t place = 0; more; ++place) {
    more = false;
    for (const auto& [service, agents] : all) {
      if (chosen.size() == kMaxKept) return chosen;
      if (place >= agents.size()) continue;
      chosen.push_back(agents[place]);
      more = true;
    }
  }
  return chosen;
}

}  // namespace

HttpAgents::HttpAgents(std::shared_ptr<const tls::CredentialStore> credentials,
                       std::chrono::milliseconds timeout)
    : credentials_(std::move(credentials)), timeout_(timeout), tender_([this] {
        pthread_setname_np(pthread_self(), "agents");
        Tend();
      }) {}

HttpAgents::~HttpAgents() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  tender_.join();
}

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

void HttpAgents::KeepConnected(const std::string& service, std::vector<AgentName> agents) {
  {
    const std::lock_guard lock(mutex_);
    const auto known = kept_.find(service);
    if (known == kept_.end() ? agents.empty() : known->second == agents) return;
    if (agents.empty()) {
      kept_.erase(known);
      return;
    }
    kept_.insert_or_assign(service, std::move(agents));
    look_ = true;
  }
  changed_.notify_all();
}

void HttpAgents::Tend() {
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    look_ = false;
    for (const AgentName& agent : ChooseKept(kept_)) {
      if (stopping_) return;
      lock.unlock();
      Connect(agent);
      lock.lock();
    }
    changed_.wait_for(lock, kLookAgain, [this] { return stopping_ || look_; });
  }
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
