// What the operator tells agents (docs/protocols.md §3). An interface, so that whoever uses it can
// be tested without agents.

#pragma once

#include <chrono>
#include <string>

#include "common/result.h"
#include "common/role.h"

namespace rouse::actuate {

class Agents {
 public:
  virtual ~Agents() = default;

  /// POST /v1/role at this address ("http://10.244.0.7:7410"). Errors are the agent's own, or
  /// Unavailable or DeadlineExceeded when it cannot be reached. Being told again is no error.
  /// Blocks; thread-safe.
  virtual Result<RoleResponse> TellRole(const std::string& address, const RoleRequest& request) = 0;
};

class HttpAgents : public Agents {
 public:
  explicit HttpAgents(std::chrono::milliseconds timeout) : timeout_(timeout) {}
  Result<RoleResponse> TellRole(const std::string& address, const RoleRequest& request) override;

 private:
  const std::chrono::milliseconds timeout_;  ///< For all of one call.
};

}  // namespace rouse::actuate
