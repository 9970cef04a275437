#include "operator/actuate/agents.h"

#include "common/http.h"

namespace rouse::actuate {

Result<RoleResponse> HttpAgents::TellRole(const std::string& address, const RoleRequest& request) {
  constexpr std::size_t kMaxAnswer = 64 << 10;
  ROUSE_ASSIGN_OR_RETURN(const auto client, http::Client::Create(address));
  http::Request post{.method = "POST",
                     .target = "/v1/role",
                     .headers = {{"Content-Type", "application/json"}},
                     .body = json::Dump(ToJson(request)),
                     .timeout = timeout_,
                     .deadline = timeout_};
  ROUSE_ASSIGN_OR_RETURN(const http::Response answer, client->Send(post, kMaxAnswer));
  if (answer.status != 202) return http::ToStatus(answer, "POST " + address + "/v1/role");
  ROUSE_ASSIGN_OR_RETURN(const json::Json body, json::Parse(answer.body, "role", kMaxAnswer));
  return RoleResponseFromJson(body);
}

}  // namespace rouse::actuate
