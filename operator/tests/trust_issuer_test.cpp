// Who gets a certificate. The API server's answers to token reviews are given by the tests; the e2e
// tests ask a real one.

#include <catch2/catch.hpp>

#include "common/certificates.h"
#include "common/tests/tls_authority.h"
#include "operator/tests/fake_api.h"
#include "operator/trust/issuer.h"

namespace rouse::trust {
namespace {

using namespace std::chrono_literals;
using tls::testing::Must;

struct IssuerWorld {
  IssuerWorld()
      : bundles(api),
        keeper(api, bundles,
               {.secret = {"s", "rouse-authorities"},
                .policy = {},
                .addresses = {},
                .hosts = {},
                .now = [] { return tls::testing::Now(); },
                .leads = [] { return true; },
                .namespaces = [] { return std::vector<std::string>(); }}),
        issuer(
            keeper,
            {.review = [this](const Json& asked) -> Result<Json> {
               last_token = asked["spec"]["token"];
               if (!review.ok()) return review.status();
               return *review;
             },
             .pod = [this](const std::string& name) { return name == "ns/demo-0" ? pod : nullptr; },
             .managed = [this](const plan::Instance&) { return managed; },
             .on_outcome = [this](std::string_view outcome) { outcomes.emplace_back(outcome); }}) {
    REQUIRE(keeper.Step().ok());
  }

  static Json Answer(const std::string& uid) {
    return {{"status",
             {{"authenticated", true},
              {"audiences", {"rouse"}},
              {"user",
               {{"username", "system:serviceaccount:ns:default"},
                {"extra",
                 {{"authentication.kubernetes.io/pod-name", {"demo-0"}},
                  {"authentication.kubernetes.io/pod-uid", {uid}}}}}}}}};
  }

  http::Response Ask(const std::string& csr) {
    http::Request request;
    request.body = json::Dump(ToJson(CertificateRequest{.csr = csr, .token = "t"}));
    return issuer.Handle(request);
  }
  http::Response Ask() { return Ask(Must(tls::MakeRequest(key))); }

  kube::FakeApi api;
  Bundles bundles;
  Keeper keeper;
  Result<Json> review = Answer("u-1");
  std::shared_ptr<plan::Instance> pod = std::make_shared<plan::Instance>(
      plan::Instance{.ns = "ns", .name = "demo-0", .uid = "u-1", .ip = "10.0.0.7"});
  bool managed = true;
  std::string last_token;
  std::vector<std::string> outcomes;
  tls::Key key = Must(tls::Key::Generate());
  Issuer issuer;
};

std::string Said(const http::Response& response, int status) {
  INFO(response.body);
  CHECK(response.status == status);
  return Json::parse(response.body)["error"]["message"];
}

}  // namespace

TEST_CASE("the agent of a pod gets a certificate for that pod, good for an hour") {
  IssuerWorld world;
  const http::Response response = world.Ask();
  REQUIRE(response.status == 200);
  const CertificateAnswer answer = Must(CertificateAnswerFromJson(Json::parse(response.body)));
  const tls::Certificate made = Must(tls::Certificate::FromPem(answer.certificate));
  CHECK(Must(made.identity()) == tls::Agent("ns", "demo-0", "u-1"));
  CHECK(tls::CheckCertificate(world.keeper.credentials()->Get()->trusted, answer.certificate).ok());
  CHECK(made.validity().not_after - tls::testing::Now() <= 1h);
  CHECK(made.validity().not_after - tls::testing::Now() > 59min);
  CHECK(answer.renew_after == 40min);
  CHECK(world.last_token == "t");
  CHECK(world.outcomes == std::vector<std::string>{"signed"});
}

TEST_CASE("whoever's token is of no pod of ours gets none") {
  IssuerWorld world;
  SECTION("refused by the API server") {
    world.review = Json{{"status", {{"authenticated", false}}}};
    CHECK_THAT(Said(world.Ask(), 403), Catch::Contains("does not accept the token"));
    CHECK(world.outcomes == std::vector<std::string>{"PermissionDenied"});
  }
  SECTION("of an earlier pod of the name") {
    world.review = IssuerWorld::Answer("u-0");
    CHECK_THAT(Said(world.Ask(), 403), Catch::Contains("u-0"));
  }
  SECTION("of a pod that only looks like one of ours") {
    world.managed = false;
    CHECK_THAT(Said(world.Ask(), 403), Catch::Contains("not controlled by a ModelService"));
  }
  SECTION("of one that the cache does not know yet") {
    world.pod = nullptr;
    CHECK_THAT(Said(world.Ask(), 503), Catch::Contains("not known"));
  }
  SECTION("not reviewed at all") {
    world.review = Unavailable("connection refused");
    CHECK_THAT(Said(world.Ask(), 503), Catch::Contains("review the token"));
  }
}

TEST_CASE("a request that makes no sense costs no review") {
  IssuerWorld world;
  CHECK_THAT(Said(world.Ask("x"), 400), Catch::Contains("csr"));
  http::Request request;
  for (const char* body : {"", "[]", "{}", R"({"protocol":"rouse-certificates","version":2})"}) {
    request.body = body;
    INFO(body);
    CHECK(world.issuer.Handle(request).status >= 400);
  }
  request.body = std::string(100'000, ' ');
  CHECK(world.issuer.Handle(request).status >= 400);
  CHECK(world.last_token.empty());
}

TEST_CASE("one pod cannot ask without end, and others still can") {
  IssuerWorld world;
  int refused = 0;
  for (int i = 0; i < 2 * PodLimits::kBurst; ++i) refused += world.Ask().status == 507;
  CHECK(refused == PodLimits::kBurst);
  world.pod->uid = "u-2";
  world.review = IssuerWorld::Answer("u-2");
  CHECK(world.Ask().status == 200);
}

TEST_CASE("an allowance refills with time, and what is remembered is bounded") {
  PodLimits limits;
  const PodLimits::TimePoint start{1h};
  for (int i = 0; i < PodLimits::kBurst; ++i) CHECK(limits.Take("a", start));
  CHECK_FALSE(limits.Take("a", start));
  CHECK_FALSE(limits.Take("a", start + PodLimits::kRefill - 1ms));
  CHECK(limits.Take("a", start + PodLimits::kRefill + 1ms));
  CHECK_FALSE(limits.Take("a", start + PodLimits::kRefill + 1ms));
  for (std::size_t i = 0; i + 1 < PodLimits::kMaxPods; ++i) {
    REQUIRE(limits.Take(std::to_string(i), start + 7s));
  }
  CHECK_FALSE(limits.Take("one more", start + 7s));
  CHECK(limits.Take("one more", start + 1h));
}

}  // namespace rouse::trust
