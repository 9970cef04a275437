#include "operator/plan/agent_url.h"

#include <catch2/catch.hpp>

namespace rouse::plan {
namespace {

using json::Json;

std::string UrlOf(const Json& spec) {
  const auto url = AgentFacingUrl({{"spec", spec}}, "rouse-system/rouse-operator", 7480);
  return url.ok() ? *url : url.status().message();
}

TEST_CASE("agents are told the Service's address and its port named http") {
  CHECK(UrlOf({{"clusterIP", "10.96.0.7"}}) == "http://10.96.0.7:7480");
  CHECK(
      UrlOf({{"clusterIP", "10.96.0.7"},
             {"ports", {{{"name", "metrics"}, {"port", 9}}, {{"name", "http"}, {"port", 80}}}}}) ==
      "http://10.96.0.7:80");
  CHECK(UrlOf({{"clusterIP", "fd00::7"}}) == "http://[fd00::7]:7480");
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
  CHECK(UrlOf({{"clusterIP", "10.96.0.7"}, {"ports", {{{"name", "http"}, {"port", "x"}}, 7}}}) ==
        "http://10.96.0.7:7480");
}

}  // namespace
}  // namespace rouse::plan
