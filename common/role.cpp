#include "common/role.h"

#include "common/protocol.h"

namespace rouse {

std::string_view ToString(Role role) {
  return json::NameOf<Role>(role, kRoles);
}

json::Json ToJson(const RoleRequest& request) {
  json::Json out = {{"protocol", kRoleProtocol},
                    {"version", kRoleVersion},
                    {"role", ToString(request.role)},
                    {"peers", PeersToJson(request.peers)}};
  if (request.decided_at_us != 0) out["decidedAtUs"] = request.decided_at_us;
  return out;
}

Result<RoleRequest> RoleRequestFromJson(const json::Json& value) {
  json::Reader in(value, "");
  ROUSE_RETURN_IF_ERROR(CheckProtocol(in, kRoleProtocol, kRoleVersion));
  RoleRequest request{.role = in.Enum<Role>("role", kRoles),
                      .peers = {},
                      .decided_at_us = in.IntOr("decidedAtUs", 0)};
  if (request.role == Role::kActive || in.Has("peers")) request.peers = ReadPeers(in, "peers");
  ROUSE_RETURN_IF_ERROR(in.status());
  return request;
}

json::Json ToJson(const RoleResponse& response) {
  return {
      {"protocol", kRoleProtocol}, {"version", kRoleVersion}, {"state", ToString(response.state)}};
}

Result<RoleResponse> RoleResponseFromJson(const json::Json& value) {
  json::Reader in(value, "");
  ROUSE_RETURN_IF_ERROR(CheckProtocol(in, kRoleProtocol, kRoleVersion));
  RoleResponse response{.state = in.Enum<AgentState>("state", kAgentStates)};
  ROUSE_RETURN_IF_ERROR(in.status());
  return response;
}

}  // namespace rouse
