// What the operator tells agents (docs/protocols.md §3). An interface, so that whoever uses it can
// be tested without agents.

#pragma once

#include <chrono>
#include <condition_variable>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "common/http.h"
#include "common/result.h"
#include "common/role.h"

namespace rouse::actuate {

/// Whom something is told: the agent of this pod and of no later one of its name, at this address.
struct AgentName {
  std::string ns;
  std::string pod;
  std::string uid;
  std::string address;  ///< "https://10.244.0.7:7411"

  bool operator==(const AgentName&) const = default;
};

/// The agent that an action, or a plan's sleeper, of this namespace names.
template <typename Named>
AgentName AgentOf(const std::string& ns, const Named& named) {
  return {.ns = ns, .pod = named.pod, .uid = named.uid, .address = named.address};
}

class Agents {
 public:
  virtual ~Agents() = default;

  /// Of this ModelService ("ns/name"), those who may be told something at any moment, in the place
  /// of who was named before: a connection to each is kept open, as far as there is room. Returns
  /// at once; thread-safe.
  virtual void KeepConnected(const std::string& service, std::vector<AgentName> agents) = 0;

  /// POST /v1/role at its address. Errors are the agent's own, or Unavailable or DeadlineExceeded
  /// when it cannot be reached, or somebody else is there. Being told again is no error. Blocks;
  /// thread-safe.
  virtual Result<RoleResponse> TellRole(const AgentName& agent, const RoleRequest& request) = 0;
};

/// Over mutual TLS. The connection to an agent is kept for what it is told next, and opened anew
/// for those who are to be kept connected when their agents close it, as they do with a silent one.
class HttpAgents : public Agents {
 public:
  HttpAgents(std::shared_ptr<const tls::CredentialStore> credentials,
             std::chrono::milliseconds timeout);
  ~HttpAgents() override;
  void KeepConnected(const std::string& service, std::vector<AgentName> agents) override;
  Result<RoleResponse> TellRole(const AgentName& agent, const RoleRequest& request) override;

 private:
  Result<std::shared_ptr<http::Client>> ClientFor(const AgentName& agent);
  void Connect(const AgentName& agent);
  void Tend();

  const std::shared_ptr<const tls::CredentialStore> credentials_;
  const std::chrono::milliseconds timeout_;  ///< For all of one call.
  std::mutex mutex_;
  /// Guarded by mutex_; by uid and address, the one used last in front.
  std::list<std::pair<std::string, std::shared_ptr<http::Client>>> clients_;
  std::map<std::string, std::vector<AgentName>> kept_;  ///< Guarded by mutex_: by ModelService.
  bool look_ = false;                                   ///< Guarded by mutex_: there are others.
  bool stopping_ = false;                               ///< Guarded by mutex_.
  std::condition_variable changed_;
  std::thread tender_;  ///< Last: it uses all the others.
};

}  // namespace rouse::actuate
