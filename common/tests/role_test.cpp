#include "common/role.h"

#include <catch2/catch.hpp>

namespace rouse {
namespace {

json::Json Asked(const char* role) {
  return {{"protocol", "rouse-role"}, {"version", 1}, {"role", role}};
}

TEST_CASE("what an instance shall be reads back") {
  const RoleRequest wake{.role = Role::kActive,
                         .peers = {{.pod = "demo-0",
                                    .node = "a",
                                    .address = "http://10.0.0.1:7410",
                                    .partial = true,
                                    .distance = Distance::kRack}}};
  const auto back = RoleRequestFromJson(ToJson(wake));
  REQUIRE(back.ok());
  CHECK(*back == wake);
  const auto guard = RoleRequestFromJson(Asked("Guard"));
  REQUIRE(guard.ok());
  CHECK(*guard == RoleRequest{.role = Role::kGuard, .peers = {}});
  const RoleResponse answer{.state = AgentState::kWaking};
  CHECK(*RoleResponseFromJson(ToJson(answer)) == answer);
}

TEST_CASE("what is wrong with a role is named") {
  json::Json other = Asked("Guard");
  other["version"] = 2;
  json::Json peer = Asked("Active");
  peer["peers"] = {{{"pod", "a"}}};
  for (const auto& [value, said] :
       {std::pair{Asked("Boss"), "role: unknown value \"Boss\", expected one of Active, Guard"},
        std::pair{Asked("Active"), "peers: missing"}, std::pair{other, "rouse-role 2"},
        std::pair{peer, "peers[0].node"}}) {
    const Status status = RoleRequestFromJson(value).status();
    INFO(status.ToString());
    CHECK(status.message().find(said) != std::string::npos);
  }
}

}  // namespace
}  // namespace rouse
