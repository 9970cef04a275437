#include <catch2/catch.hpp>
#include <functional>

#include "common/base64.h"
#include "common/tls/x509.h"
#include "operator/trust/authorities.h"

namespace rouse::trust {
namespace {

using namespace std::chrono_literals;

const tls::TimePoint kNow{std::chrono::seconds(1'800'000'000)};
const tls::RotationPolicy kDefaultPolicy;

Authority Made(tls::TimePoint at) {
  auto made = NewAuthority(at, kDefaultPolicy);
  REQUIRE(made.ok());
  return *std::move(made);
}

Json Stored(const Authorities& authorities) {
  Json secret = SecretOf(authorities, "rouse-system", "rouse-authorities");
  secret["metadata"]["resourceVersion"] = "7";
  return secret;
}

}  // namespace

TEST_CASE("authorities read back from their Secret") {
  Authorities before{.all = {Made(kNow - 1h), Made(kNow)}, .resource_version = ""};
  before.all[0].times.published = kNow - 1min;
  const Json secret = SecretOf(before, "rouse-system", "rouse-authorities");
  CHECK_FALSE(secret["metadata"].contains("resourceVersion"));
  const auto after = AuthoritiesFromSecret(Stored(before));
  REQUIRE(after.ok());
  CHECK(after->resource_version == "7");
  REQUIRE(after->all.size() == 2);
  for (std::size_t i = 0; i < 2; ++i) {
    CHECK(after->all[i].certificate == before.all[i].certificate);
    CHECK(after->all[i].key == before.all[i].key);
    CHECK(after->all[i].times.created == before.all[i].times.created);
    CHECK(after->all[i].times.not_after ==
          before.all[i].times.created + kDefaultPolicy.authority_lifetime);
    CHECK(after->all[i].times.published == before.all[i].times.published);
    CHECK_FALSE(after->all[i].times.retire);
  }
  // Written back, it is on condition that nobody else has written.
  CHECK(SecretOf(*after, "a", "b")["metadata"]["resourceVersion"] == "7");
}

TEST_CASE("who annotates the Secret asks for a successor of the newest") {
  Json secret = Stored({.all = {Made(kNow - 1h), Made(kNow)}, .resource_version = ""});
  secret["metadata"]["annotations"][kAnnotationReplace] = "";
  const auto read = AuthoritiesFromSecret(secret);
  REQUIRE(read.ok());
  CHECK_FALSE(read->all[0].times.retire);
  CHECK(read->all[1].times.retire);
  CHECK(PlanRotation(*read, kNow, kDefaultPolicy).create);
  // It stays asked for until it is done.
  CHECK(SecretOf(*read, "a", "b")["metadata"]["annotations"].contains(kAnnotationReplace));
}

TEST_CASE("a Secret that Rouse has not written is refused by name") {
  const Json good = Stored({.all = {Made(kNow)}, .resource_version = ""});
  const auto refused = [&](const std::function<void(Json&)>& change, const char* what) {
    Json secret = good;
    change(secret);
    const auto read = AuthoritiesFromSecret(secret);
    INFO(read.status().ToString());
    CHECK(read.status().code() == StatusCode::kInvalidArgument);
    CHECK_THAT(read.status().message(), Catch::Contains(what));
  };
  const auto content = [&](const std::function<void(Json&)>& change) {
    return [&good, change](Json& secret) {
      Json document =
          Json::parse(*Base64Decode(good["data"]["authorities.json"].get<std::string>(), "x"));
      change(document);
      secret["data"]["authorities.json"] = Base64Encode(document.dump());
    };
  };
  refused([](Json& secret) { secret.erase("data"); }, "authorities.json");
  refused([](Json& secret) { secret["data"]["authorities.json"] = "%"; }, "authorities.json");
  refused([](Json& secret) { secret["data"]["authorities.json"] = Base64Encode("{"); },
          "authorities.json");
  refused(content([](Json& d) { d["format"] = 2; }), "another release");
  refused(content([](Json& d) { d["authorities"][0].erase("created"); }), "created");
  refused(content([](Json& d) { d["authorities"][0]["certificate"] = "x"; }), "[0].certificate");
  refused(content([](Json& d) { d["authorities"][0]["key"] = "x"; }), "[0].key");
  refused(content([](Json& d) { d["authorities"] = std::vector<Json>(17, d["authorities"][0]); }),
          "more than 16");
}

TEST_CASE("the bundle holds whoever is trusted") {
  Authorities both{.all = {Made(kNow - kDefaultPolicy.authority_lifetime), Made(kNow)},
                   .resource_version = ""};
  CHECK(BundleOf(both, PlanRotation(both, kNow - 1s, kDefaultPolicy)) ==
        both.all[0].certificate + both.all[1].certificate);
  CHECK(BundleOf(both, PlanRotation(both, kNow, kDefaultPolicy)) == both.all[1].certificate);
}

}  // namespace rouse::trust
