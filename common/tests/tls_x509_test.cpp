#include <catch2/catch.hpp>

#include "common/tests/tls_authority.h"

namespace rouse::tls {
namespace {

using namespace std::chrono_literals;
using testing::Must;
using testing::Now;

const Identity kPod = Agent("ns", "p-0", "u-1");

}  // namespace

TEST_CASE("a certificate says whom it is for, whatever the request says") {
  const testing::Authority authority;
  const Key key = Must(Key::Generate());
  const Key asked = Must(KeyOfRequest(Must(MakeRequest(key))));
  const Certificate made = authority.SignFor(asked, kPod);
  CHECK(Must(made.identity()) == kPod);
  const Certificate back = Must(Certificate::FromPem(made.ToPem()));
  CHECK(Must(back.identity()) == kPod);
  CHECK(back.validity() == made.validity());
  CHECK(CheckCertificate(authority.pem(), made.ToPem()).ok());
  CHECK_FALSE(CheckCertificate(testing::Authority("other").pem(), made.ToPem()).ok());
  CHECK(CheckCertificate(testing::Authority("other").pem() + authority.pem(), made.ToPem()).ok());
}

TEST_CASE("a certificate is good in its time only") {
  const testing::Authority authority;
  const Key key = Must(Key::Generate());
  const std::string ended = authority.SignFor(key, kPod, -1s).ToPem();
  CHECK_THAT(CheckCertificate(authority.pem(), ended).message(), Catch::Contains("expired"));
}

TEST_CASE("an authority's signature makes no other authority") {
  const testing::Authority authority;
  const Key key = Must(Key::Generate());
  const Certificate agent = authority.SignFor(key, kPod);
  const Key victim = Must(Key::Generate());
  const Certificate forged =
      Must(Sign(agent, key, victim, {.identity = Operator(), .addresses = {}, .hosts = {}},
                {.not_before = Now() - 1h, .not_after = Now() + 1h}));
  CHECK_FALSE(CheckCertificate(authority.pem(), forged.ToPem()).ok());
  CHECK_FALSE(CheckCertificate(authority.pem() + agent.ToPem(), forged.ToPem()).ok());
}

TEST_CASE("keys read back, and only those of EC P-256 are taken") {
  const Key key = Must(Key::Generate());
  const std::string pem = Must(key.ToPem());
  CHECK(Must(Must(Key::FromPem(pem)).ToPem()) == pem);
  CHECK(Key::FromPem("").status().code() == StatusCode::kInvalidArgument);
  CHECK(Key::FromPem(testing::Authority().pem()).status().code() == StatusCode::kInvalidArgument);
  // Ed25519, by `openssl genpkey -algorithm ed25519`.
  const char* const other =
      "-----BEGIN PRIVATE KEY-----\n"
      "MC4CAQAwBQYDK2VwBCIEIBlYoDbEeIxNfnM9vMTgLfQOlFT8FVRSNdlbBqGlAsvK\n"
      "-----END PRIVATE KEY-----\n";
  CHECK_THAT(Key::FromPem(other).status().message(), Catch::Contains("P-256"));
}

TEST_CASE("a request that is none, too long, or signed by another key is refused") {
  std::string request = Must(MakeRequest(Must(Key::Generate())));
  CHECK(KeyOfRequest(request).ok());
  CHECK_FALSE(KeyOfRequest("").ok());
  CHECK_FALSE(KeyOfRequest(testing::Authority().pem()).ok());
  CHECK_THAT(KeyOfRequest(std::string(kMaxRequestBytes + 1, ' ')).status().message(),
             Catch::Contains("over the limit"));
  // Every letter of the body matters to the signature or to the form.
  const auto body = request.find('\n') + 1;
  int refused = 0;
  for (std::size_t i = body; i < request.find("-----END"); i += 7) {
    std::string damaged = request;
    damaged[i] = damaged[i] == 'A' ? 'B' : 'A';
    refused += !KeyOfRequest(damaged).ok();
  }
  CHECK(refused >= 30);
}

TEST_CASE("a name with a comma stays one name") {
  const testing::Authority authority;
  const Key key = Must(Key::Generate());
  const Certificate made =
      Must(Sign(authority.certificate(), authority.key(), key,
                {.identity = kPod,
                 .addresses = {"10.0.0.1,URI:spiffe://rouse.dev/operator", "fd00::1"},
                 .hosts = {"a,URI:spiffe://rouse.dev/operator"}},
                {.not_before = Now() - 1h, .not_after = Now() + 1h}));
  CHECK(Must(made.identity()) == kPod);
}

}  // namespace rouse::tls
