#include "operator/plan/agent_url.h"

#include <catch2/catch.hpp>

namespace rouse::plan {
namespace {

using json::Json;

std::string UrlOf(const Json& spec) {
  const auto url = AgentFacingUrl({{"spec", spec}}, "rouse-system/rouse-operator", 7482);
  return url.ok() ? *url : url.status().message();
}

TEST_CASE("agents are told the Service's address and its port named agents") {
  CHECK(UrlOf({{"clusterIP", "10.96.0.7"}}) == "https://10.96.0.7:7482");
  CHECK(UrlOf({{"clusterIP", "10.96.0.7"},
               {"ports",
                {{{"name", "metrics"}, {"port", 9}}, {{"name", "agents"}, {"port", 80}}}}}) ==
        "https://10.96.0.7:80");
  CHECK(UrlOf({{"clusterIP", "fd00::7"}}) == "https://[fd00::7]:7482");
}

TEST_CASE("a Service without an address is refused with what to change") {
  const std::string refused =
      "service rouse-system/rouse-operator has no ClusterIP: give it one, or set "
      "--agent-facing-url";
  CHECK(UrlOf({{"clusterIP", "None"}}) == refused);
  CHECK(UrlOf(Json::object()) == refused);
  CHECK(UrlOf({{"clusterIP", 7}}) == refused);
  CHECK(UrlOf("no object") == refused);
}

TEST_CASE("ports of an odd form are passed over") {
  CHECK(UrlOf({{"clusterIP", "10.96.0.7"}, {"ports", {{{"name", "agents"}, {"port", "x"}}, 7}}}) ==
        "https://10.96.0.7:7482");
}

}  // namespace
}  // namespace rouse::plan
