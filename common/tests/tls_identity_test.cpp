#include <catch2/catch.hpp>

#include "common/tls/identity.h"

namespace rouse::tls {

TEST_CASE("an identity reads back from its URI") {
  for (const Identity& identity :
       {Operator(), Agent("default", "demo-0", "1b4e28ba-2fa1"), Agent("a", "x.y-1", "0")}) {
    const auto back = IdentityFromUri(ToUri(identity));
    REQUIRE(back.ok());
    CHECK(*back == identity);
  }
  CHECK(ToUri(Operator()) == "spiffe://rouse.dev/operator");
  CHECK(ToUri(Agent("ns", "p-0", "u")) == "spiffe://rouse.dev/ns/ns/pod/p-0/uid/u");
}

TEST_CASE("a URI that says something else, or more, is nobody's") {
  for (const char* uri :
       {"", "spiffe://rouse.dev/", "spiffe://rouse.dev/operator/", "spiffe://rouse.dev/operators",
        "spiffe://other.dev/operator", "https://rouse.dev/operator", "spiffe://rouse.dev/ns/a",
        "spiffe://rouse.dev/ns/a/pod/b/uid/", "spiffe://rouse.dev/ns//pod/b/uid/c",
        "spiffe://rouse.dev/ns/a/pod/b/uid/c/d", "spiffe://rouse.dev/ns/a/pod/../uid/c",
        "spiffe://rouse.dev/ns/a/pod/b%2f/uid/c", "spiffe://rouse.dev/ns/A/pod/b/uid/c",
        "spiffe://rouse.dev/pod/b/ns/a/uid/c", "SPIFFE://rouse.dev/operator"}) {
    INFO(uri);
    CHECK(IdentityFromUri(uri).status().code() == StatusCode::kInvalidArgument);
  }
  CHECK_FALSE(IdentityFromUri(ToUri(Agent(std::string(254, 'a'), "b", "c"))).ok());
}

TEST_CASE("whoever is expected matches in all that is said of him") {
  const Identity found = Agent("ns", "p-0", "u-1");
  CHECK(Matches(Agent("ns", "p-0", "u-1"), found));
  CHECK(Matches(Agent("ns", "p-0"), found));
  CHECK(Matches(Agent("ns", ""), found));
  CHECK_FALSE(Matches(Agent("ns", "p-0", "u-2"), found));
  CHECK_FALSE(Matches(Agent("ns", "p-1"), found));
  CHECK_FALSE(Matches(Agent("other", ""), found));
  CHECK_FALSE(Matches(Operator(), found));
  CHECK_FALSE(Matches(found, Operator()));
  CHECK_FALSE(Matches(Agent("", ""), Operator()));
  CHECK(Matches(Operator(), Operator()));
}

}  // namespace rouse::tls
