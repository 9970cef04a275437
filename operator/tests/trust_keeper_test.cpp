// Keepers of several replicas over one API server in memory.

#include <catch2/catch.hpp>

#include "common/tls/x509.h"
#include "operator/tests/fake_api.h"
#include "operator/trust/keeper.h"

namespace rouse::trust {
namespace {

using namespace std::chrono_literals;

const tls::RotationPolicy kPolicy{
    .authority_lifetime = 24h, .certificate_lifetime = 1h, .propagation = 5min};

/// A moment that OpenSSL's own clock does not have to agree with, but for what it checks itself.
struct Replica {
  Replica(kube::FakeApi& api, const tls::TimePoint& clock)
      : bundles(api),
        keeper(api, bundles,
               {.secret = {"rouse-system", "rouse-authorities"},
                .policy = kPolicy,
                .addresses = {"10.0.0.9"},
                .hosts = {"rouse-operator.rouse-system.svc"},
                .now = [&clock] { return clock; },
                .leads = [this] { return leads; },
                .namespaces = [this] { return namespaces; }}) {}

  std::string Trusted() const { return keeper.credentials()->Get()->trusted; }
  std::string Own() const { return keeper.credentials()->Get()->certificate; }

  bool leads = false;
  std::vector<std::string> namespaces = {"a", "b"};
  Bundles bundles;
  Keeper keeper;
};

struct World {
  kube::FakeApi api;
  tls::TimePoint now =
      std::chrono::time_point_cast<std::chrono::seconds>(std::chrono::system_clock::now());

  std::string Bundle(const std::string& ns) {
    const auto map = api.Get(kube::ConfigMaps(), {ns, "rouse-ca"});
    return map.ok() ? map->at("data").at("ca.crt").get<std::string>() : "";
  }
  int Count(const std::string& pem) {
    int count = 0;
    for (auto at = pem.find("BEGIN CERT"); at != std::string::npos;
         at = pem.find("BEGIN CERT", at + 1)) {
      ++count;
    }
    return count;
  }
};

}  // namespace

TEST_CASE("the leader makes the first authority, and every replica has a certificate of it") {
  World world;
  Replica leader(world.api, world.now), other(world.api, world.now);
  CHECK(other.keeper.Step().code() == StatusCode::kUnavailable);
  CHECK_THAT(other.keeper.facts().not_ready, Catch::Contains("the leader makes it"));
  CHECK(other.keeper.credentials()->Get() == nullptr);
  CHECK(other.keeper.Prepare("a").code() == StatusCode::kUnavailable);

  leader.leads = true;
  REQUIRE(leader.keeper.Step().ok());
  REQUIRE(other.keeper.Step().ok());
  CHECK(leader.keeper.facts().not_ready.empty());
  CHECK(other.keeper.facts().not_ready.empty());
  CHECK(leader.Trusted() == other.Trusted());
  CHECK(leader.Trusted() == world.Bundle("a"));
  CHECK(world.Bundle("a") == world.Bundle("b"));
  for (const Replica* each : {&leader, &other}) {
    CHECK(tls::CheckCertificate(leader.Trusted(), each->Own()).ok());
    CHECK(*tls::Certificate::FromPem(each->Own())->identity() == tls::Operator());
  }
  CHECK(leader.Own() != other.Own());
}

TEST_CASE(
    "nothing is written again while nothing changes, and a namespace that comes gets its bundle") {
  World world;
  Replica leader(world.api, world.now);
  leader.leads = true;
  REQUIRE(leader.keeper.Step().ok());
  const auto own = leader.Own();
  const auto calls = world.api.calls().size();
  for (int i = 0; i < 5; ++i) REQUIRE(leader.keeper.Step().ok());
  CHECK(world.api.calls().size() == calls + 5);  // The Secret is read.
  CHECK(leader.Own() == own);
  REQUIRE(leader.keeper.Prepare("c").ok());
  CHECK(world.Bundle("c") == leader.Trusted());
}

TEST_CASE("replicas that do not lead write nothing") {
  World world;
  Replica leader(world.api, world.now), other(world.api, world.now);
  leader.leads = true;
  REQUIRE(leader.keeper.Step().ok());
  world.now += 23h;  // A successor is due.
  const auto before = world.api.calls().size();
  REQUIRE(other.keeper.Step().ok());
  const auto calls = world.api.calls();
  CHECK(std::vector(calls.begin() + static_cast<std::ptrdiff_t>(before), calls.end()) ==
        std::vector<std::string>{"get secret rouse-system/rouse-authorities"});
}

TEST_CASE("a successor signs once all bundles are written and known, whoever leads by then") {
  World world;
  Replica first(world.api, world.now), second(world.api, world.now);
  first.leads = true;
  REQUIRE(first.keeper.Step().ok());
  REQUIRE(second.keeper.Step().ok());
  const std::string old = first.Trusted();

  world.now += 16h;
  world.api.SetHook([](const std::string& verb, const std::string& object) {
    return verb == "apply" && object == "configmap b/rouse-ca" ? Unavailable("no") : Status();
  });
  CHECK_FALSE(first.keeper.Step().ok());
  CHECK(world.Count(first.Trusted()) == 2);
  CHECK(world.Count(world.Bundle("a")) == 2);
  CHECK(world.Bundle("b") == old);
  world.now += 1h;  // One namespace still does not know it: it may not sign.
  CHECK_FALSE(first.keeper.Step().ok());
  const auto signed_by_old = [&](const Replica& replica) {
    const auto made =
        replica.keeper.Sign(*tls::Key::Generate(),
                            {.identity = tls::Agent("a", "p", "u"), .addresses = {}, .hosts = {}});
    REQUIRE(made.ok());
    return tls::CheckCertificate(old, made->certificate).message().find("issuer") ==
           std::string::npos;
  };
  CHECK(signed_by_old(first));

  world.api.SetHook({});
  first.leads = false;
  second.leads = true;
  REQUIRE(second.keeper.Step().ok());
  CHECK(world.Count(world.Bundle("b")) == 2);
  CHECK(signed_by_old(second));
  world.now += kPolicy.propagation;
  REQUIRE(second.keeper.Step().ok());
  REQUIRE(first.keeper.Step().ok());
  CHECK_FALSE(signed_by_old(second));
  CHECK_FALSE(signed_by_old(first));
  CHECK(world.Count(first.Trusted()) == 2);
  world.now += kPolicy.certificate_lifetime + tls::kClockSkew;
  REQUIRE(second.keeper.Step().ok());
  CHECK(world.Count(second.Trusted()) == 1);
  CHECK(second.Trusted() != old);
  CHECK(world.Bundle("a") == second.Trusted());
}

TEST_CASE("a bundle that somebody has changed or deleted is mended within a minute") {
  World world;
  Bundles bundles(world.api);
  const Bundles::Clock::time_point start{1h};
  REQUIRE(bundles.Ensure("a", "good", start).ok());
  const bool deleted = GENERATE(false, true);
  if (deleted) {
    world.api.Erase(kube::ConfigMaps(), {"a", "rouse-ca"});
  } else {
    world.api.Put(kube::ConfigMaps(), {{"metadata", {{"namespace", "a"}, {"name", "rouse-ca"}}},
                                       {"data", {{"ca.crt", "bad"}}}});
  }
  REQUIRE(bundles.Ensure("a", "good", start + 59s).ok());
  CHECK(world.Bundle("a") == (deleted ? "" : "bad"));
  REQUIRE(bundles.Ensure("a", "good", start + 60s).ok());
  CHECK(world.Bundle("a") == "good");
  // What is right is not written.
  const auto calls = world.api.calls().size();
  REQUIRE(bundles.Ensure("a", "good", start + 120s).ok());
  CHECK(world.api.calls().size() == calls + 1);
  REQUIRE(bundles.Ensure("a", "better", start + 121s).ok());
  CHECK(world.Bundle("a") == "better");
}

TEST_CASE("the own certificate is renewed in time, also while the API server is away") {
  World world;
  Replica leader(world.api, world.now);
  leader.leads = true;
  REQUIRE(leader.keeper.Step().ok());
  const std::string own = leader.Own();
  world.api.SetHook([](const std::string&, const std::string&) { return Unavailable("away"); });
  world.now += 39min;
  CHECK_FALSE(leader.keeper.Step().ok());
  CHECK(leader.Own() == own);
  world.now += 2min;
  CHECK_FALSE(leader.keeper.Step().ok());
  CHECK(leader.Own() != own);
  CHECK(leader.keeper.facts().not_ready.empty());
}

TEST_CASE("a clock that was ahead and is right again leaves no certificate that nobody believes") {
  World world;
  Replica leader(world.api, world.now);
  leader.leads = true;
  REQUIRE(leader.keeper.Step().ok());
  const auto believed = [&] { return tls::CheckCertificate(leader.Trusted(), leader.Own()).ok(); };
  CHECK(believed());
  const std::string agents = world.Bundle("a");
  const auto ahead = GENERATE(8h, 20h, 240h);  // Of the authority's life a third, 5/6, ten times.
  world.now += ahead;
  REQUIRE(leader.keeper.Step().ok());
  CHECK_FALSE(believed());
  world.now -= ahead;
  REQUIRE(leader.keeper.Step().ok());
  CHECK(believed());
  CHECK(tls::CheckCertificate(agents, leader.Own()).ok());  // By those who heard of nothing, too.
  CHECK(leader.keeper.facts().renew_at > world.now);
  CHECK(leader.keeper.facts().renew_at < world.now + 1h);
}

TEST_CASE("a clock that is behind all authorities makes none, and says so") {
  World world;
  Replica leader(world.api, world.now);
  leader.leads = true;
  REQUIRE(leader.keeper.Step().ok());
  const std::string agents = world.Bundle("a"), own = leader.Own();
  world.now -= 48h;
  const Status behind = leader.keeper.Step();
  CHECK_THAT(behind.message(), Catch::Contains("clock"));
  CHECK(world.Bundle("a") == agents);
  CHECK(leader.Own() == own);
  world.now += 48h;
  REQUIRE(leader.keeper.Step().ok());
  CHECK(world.Bundle("a") == agents);
  CHECK(leader.Own() == own);
}

TEST_CASE("a Secret that is deleted is made anew at once, with nothing of the old") {
  World world;
  Replica leader(world.api, world.now), other(world.api, world.now);
  leader.leads = true;
  REQUIRE(leader.keeper.Step().ok());
  REQUIRE(other.keeper.Step().ok());
  const std::string old = leader.Trusted();
  world.api.Erase(kube::Secrets(), {"rouse-system", "rouse-authorities"});
  CHECK_FALSE(other.keeper.Step().ok());
  CHECK(other.Trusted() == old);  // Until the leader has looked, there is nothing else.
  REQUIRE(leader.keeper.Step().ok());
  REQUIRE(other.keeper.Step().ok());
  CHECK(world.Count(leader.Trusted()) == 1);
  CHECK(leader.Trusted() != old);
  CHECK(other.Trusted() == leader.Trusted());
  CHECK(world.Bundle("a") == leader.Trusted());
  CHECK(tls::CheckCertificate(leader.Trusted(), other.Own()).ok());
}

TEST_CASE("two leaders at once end with one authority") {
  World world;
  Replica a(world.api, world.now), b(world.api, world.now);
  a.leads = b.leads = true;
  // b reads before a writes.
  bool stepped = false;
  world.api.SetHook([&](const std::string& verb, const std::string& object) {
    if (verb == "create" && object.starts_with("secret") && !stepped) {
      stepped = true;
      CHECK(a.keeper.Step().ok());
    }
    return Status();
  });
  CHECK(b.keeper.Step().code() == StatusCode::kUnavailable);
  world.api.SetHook({});
  REQUIRE(b.keeper.Step().ok());
  CHECK(b.Trusted() == a.Trusted());
  CHECK(world.Count(a.Trusted()) == 1);
}

TEST_CASE(
    "a Secret that somebody else has written is left alone, and the message says what to do") {
  World world;
  world.api.Put(kube::Secrets(),
                {{"metadata", {{"namespace", "rouse-system"}, {"name", "rouse-authorities"}}},
                 {"data", {{"tls.crt", "eA=="}}}});
  Replica leader(world.api, world.now);
  leader.leads = true;
  const Status status = leader.keeper.Step();
  CHECK_THAT(status.message(), Catch::Contains("rouse-system/rouse-authorities"));
  CHECK_THAT(status.message(), Catch::Contains("deleted, it is made anew"));
  CHECK(world.api.calls() == std::vector<std::string>{"get secret rouse-system/rouse-authorities"});
}

}  // namespace rouse::trust
