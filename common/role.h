// What an instance is told to be, by whoever decides that: POST /v1/role of the agent's port
// (docs/protocols.md §3). Strict; errors name the field.

#pragma once

#include <vector>

#include "common/messages.h"

namespace rouse {

inline constexpr std::string_view kRoleProtocol = "rouse-role";
inline constexpr int kRoleVersion = 1;

enum class Role {
  kActive,  ///< Serves.
  kGuard,   ///< Has been through a start and sleeps, without weights and KV memory.
};
inline constexpr json::EnumName<Role> kRoles[] = {{Role::kActive, "Active"},
                                                  {Role::kGuard, "Guard"}};
std::string_view ToString(Role role);

struct RoleRequest {
  Role role = Role::kActive;
  std::vector<Peer> peers;  ///< Whose weights an instance wakes with, best first.
  /// When that was decided, in microseconds since the Unix epoch; 0: not said.
  std::int64_t decided_at_us = 0;

  bool operator==(const RoleRequest&) const = default;
};

json::Json ToJson(const RoleRequest& request);
Result<RoleRequest> RoleRequestFromJson(const json::Json& value);

/// The answer: in which state the instance is now. Being told again is no error.
struct RoleResponse {
  AgentState state = AgentState::kServing;

  bool operator==(const RoleResponse&) const = default;
};

json::Json ToJson(const RoleResponse& response);
Result<RoleResponse> RoleResponseFromJson(const json::Json& value);

}  // namespace rouse
