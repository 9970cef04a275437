// What the operator tells agents (docs/protocols.md §3). An interface, so that whoever uses it can
// be tested without agents.

#pragma once

#include <chrono>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

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

class Agents {
 public:
  virtual ~Agents() = default;

  /// Opens a connection for what it is told next, which says why if it cannot. Blocks, not for
  /// long; thread-safe.
  virtual void Connect(const AgentName& agent) = 0;

  /// POST /v1/role at its address. Errors are the agent's own, or Unavailable or DeadlineExceeded
  /// when it cannot be reached, or somebody else is there. Being told again is no error. Blocks;
  /// thread-safe.
  virtual Result<RoleResponse> TellRole(const AgentName& agent, const RoleRequest& request) = 0;
};

/// Over mutual TLS. The connection to an agent is kept for what it is told next.
class HttpAgents : public Agents {
 public:
  HttpAgents(std::shared_ptr<const tls::CredentialStore> credentials,
             std::chrono::milliseconds timeout)
      : credentials_(std::move(credentials)), timeout_(timeout) {}
  void Connect(const AgentName& agent) override;
  Result<RoleResponse> TellRole(const AgentName& agent, const RoleRequest& request) override;

 private:
  Result<std::shared_ptr<http::Client>> ClientFor(const AgentName& agent);

  const std::shared_ptr<const tls::CredentialStore> credentials_;
  const std::chrono::milliseconds timeout_;  ///< For all of one call.
  std::mutex mutex_;
  /// Guarded by mutex_; by uid and address, the one used last in front.
  std::list<std::pair<std::string, std::shared_ptr<http::Client>>> clients_;
};

}  // namespace rouse::actuate
