#include <catch2/catch.hpp>

#include "operator/trust/token_review.h"

namespace rouse::trust {
namespace {

// As Kubernetes 1.37 answers for a token of a projected volume.
Json Answer() {
  return Json::parse(R"({
    "kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1",
    "spec": {"token": "x", "audiences": ["rouse"]},
    "status": {"authenticated": true, "audiences": ["rouse"],
      "user": {"username": "system:serviceaccount:models:default", "uid": "8d0f",
        "groups": ["system:serviceaccounts", "system:authenticated"],
        "extra": {"authentication.kubernetes.io/pod-name": ["demo-0"],
                  "authentication.kubernetes.io/pod-uid": ["1b4e28ba"],
                  "authentication.kubernetes.io/node-name": ["node-a"]}}}})");
}

Result<TokenPod> With(const char* pointer, const Json& value) {
  Json answer = Answer();
  answer[Json::json_pointer(pointer)] = value;
  return PodOf(answer);
}

}  // namespace

TEST_CASE("a token review asks for the audience of Rouse's own") {
  CHECK(TokenReviewOf("t") == Json{{"spec", {{"token", "t"}, {"audiences", {"rouse"}}}}});
}

TEST_CASE("a good token is of the pod that it is bound to") {
  REQUIRE(PodOf(Answer()).ok());
  CHECK(*PodOf(Answer()) == TokenPod{"models", "demo-0", "1b4e28ba"});
}

TEST_CASE("a token that proves no pod is refused, and the message says why") {
  const auto denied = [](const Result<TokenPod>& result, const char* why) {
    INFO(result.status().ToString());
    CHECK(result.status().code() == StatusCode::kPermissionDenied);
    CHECK_THAT(result.status().message(), Catch::Contains(why));
  };
  denied(PodOf({{"status", {{"authenticated", false}, {"error", "token has expired"}}}}),
         "token has expired");
  denied(PodOf(Json::object()), "does not accept the token");
  denied(With("/status/authenticated", false), "does not accept the token");
  denied(With("/status/audiences", Json::array()), "not for audience");
  denied(With("/status/audiences", {"https://kubernetes.default.svc"}), "not for audience");
  denied(With("/status/user/username", "admin"), "bound to no pod");
  denied(With("/status/user/extra", Json::object()), "bound to no pod");
  denied(With("/status/user/extra/authentication.kubernetes.io~1pod-uid", {"a", "b"}),
         "bound to no pod");
  denied(With("/status/user/extra/authentication.kubernetes.io~1pod-name", 7), "bound to no pod");
}

TEST_CASE("an answer of another form is no answer") {
  for (const auto& [pointer, value] : std::vector<std::pair<const char*, Json>>{
           {"/status", "yes"}, {"/status/authenticated", "true"}, {"/status/user", {"a"}}}) {
    INFO(pointer);
    CHECK_FALSE(With(pointer, value).ok());
  }
  CHECK_FALSE(PodOf("no object").ok());
}

}  // namespace rouse::trust
