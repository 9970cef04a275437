// How copies come to other agents and go, one rule at a time.

#include <atomic>
#include <catch2/catch.hpp>
#include <memory>
#include <string>

#include "agent/tests/state_agents.h"
#include "agent/tests/state_fixture.h"
#include "common/tests/eventually.h"

using namespace rouse;
using namespace rouse::agent;
using test::Eventually;

namespace {

using std::chrono::milliseconds;

/// Longer than any of these tests takes.
constexpr milliseconds kNever{3'600'000};

/// A name that stands directly before `later` in the order of places of this bundle.
std::string NameBefore(const BundleKey& key, const std::string& later, const std::string& prefix) {
  for (int i = 0;; ++i) {
    const std::string name = prefix + "-" + std::to_string(i);
    if (PlacementOrder(key.fingerprint, {{.pod = name}, {.pod = later}})[0].pod == name) {
      return name;
    }
  }
}

KeepRequest OfferOf(const std::string& pod, const Bundle& bundle) {
  const auto held = MakeHeld(bundle);
  return {.pod = pod,
          .of = bundle.of,
          .fingerprint = bundle.fingerprint,
          .bytes = held->rank.bytes,
          .digest = held->rank.digest,
          .copies = 1,
          .used_at_us = 1};
}

/// Something at an agent's address that answers as it is told to, and is named as an agent.
struct FakePeer {
  FakePeer(NamedAgents& named, const std::string& pod, http::Handler handler) {
    auto listening = http::Server::Listen("127.0.0.1", 0, std::move(handler),
                                          {.threads = 1, .tls = std::nullopt});
    REQUIRE(listening.ok());
    server = *std::move(listening);
    named.Put({.pod = pod,
               .node = "node-of-" + pod,
               .address = "http://127.0.0.1:" + std::to_string(server->port())});
  }
  std::unique_ptr<http::Server> server;
};

}  // namespace

TEST_CASE("A copy goes to the agent that comes to be its place, and is then given up before") {
  NamedAgents named(1);
  const BundleKey key = ServingAgent::KeyOf("demo-0");
  const std::string first = NameBefore(key, "demo-0", "first");
  const std::string second = NameBefore(key, first, "second");
  const ServingAgent::Options quick{.recheck = milliseconds(200), .surplus = milliseconds(400)};
  auto owner = std::make_unique<ServingAgent>(named, "demo-0", quick);
  const ServingAgent before(named, first, quick);
  REQUIRE(Eventually([&] { return before.Holds(key); }));
  CHECK(
      Eventually([&] { return before.Metric("rouse_state_copies_total{outcome=\"kept\"}") >= 1; }));
  const ServingAgent after(named, second, quick);
  REQUIRE(Eventually([&] { return after.Holds(key) && !before.Holds(key); }));
  CHECK(Eventually(
      [&] { return before.Metric("rouse_state_copies_total{outcome=\"surplus\"}") >= 1; }));
  // It outlives who has made it.
  named.Remove("demo-0");
  owner.reset();
  CHECK(after.Holds(key));
}

TEST_CASE("Whoever leaves hands what only it has to the next one that has room") {
  NamedAgents named(1);
  const BundleKey key = ServingAgent::KeyOf("demo-0");
  const std::string roomy = NameBefore(key, "demo-0", "roomy");
  const std::string full = NameBefore(key, roomy, "full");
  ServingAgent owner(named, "demo-0", {.recheck = kNever});
  // Its own caches have room in it, no copy has.
  const ServingAgent first(named, full, {.store_bytes = 150'000});
  REQUIRE(Eventually([&] {
    return first.Metric("rouse_state_copies_total{outcome=\"refused\"}") >= 1 &&
           owner.Metric("rouse_state_copies_missing") >= 1;
  }));
  REQUIRE(Eventually([&] { return first.Holds(ServingAgent::KeyOf(full)); }));
  const ServingAgent second(named, roomy);
  REQUIRE(Eventually([&] { return second.Holds(ServingAgent::KeyOf(roomy)); }));
  CHECK_FALSE(second.Holds(key));
  owner.Leave();
  CHECK(second.Holds(key));
  CHECK_FALSE(first.Holds(key));
}

TEST_CASE("An agent takes nothing from who is not named to it, and nothing when it leaves") {
  NamedAgents named(1);
  ServingAgent agent(named, "demo-0");
  const auto stranger = agent.state().Keep(OfferOf("stranger", GoodBundle()));
  CHECK(stranger.status().code() == StatusCode::kUnavailable);
  CHECK(stranger.status().message().find("has not named agent stranger") != std::string::npos);
  agent.Leave();
  const auto late = agent.state().Keep(OfferOf("demo-0", GoodBundle()));
  CHECK(late.status().code() == StatusCode::kUnavailable);
  CHECK(late.status().message().find("leaves") != std::string::npos);
}

TEST_CASE("What could not be fetched is not fetched again at once, but from another one") {
  NamedAgents named(1);
  const Bundle bundle = GoodBundle();
  std::atomic<int> reads{0};
  const http::Handler holder = [&](const http::Request& request) {
    if (request.method == "GET") {
      return http::JsonResponse(json::Dump(ToJson(
          StateAnswer{.standing = StateStanding::kHeld, .decided_at_us = 0, .bundle = bundle})));
    }
    ++reads;
    return http::ErrorResponse(NotFound("the file is gone"));
  };
  const FakePeer broken(named, "broken", holder);
  const FakePeer also_broken(named, "also-broken", holder);
  ServingAgent agent(named, "demo-0", {.recheck = kNever});
  const auto offer = [&](const std::string& pod) {
    return agent.state().Keep(OfferOf(pod, bundle));
  };
  REQUIRE(offer("broken").ok());
  REQUIRE(Eventually([&] { return !offer("broken").ok(); }));
  CHECK(offer("broken").status().code() == StatusCode::kFailedPrecondition);
  CHECK(offer("broken").status().message().find("the file is gone") != std::string::npos);
  CHECK(reads == 1);
  REQUIRE(offer("also-broken").ok());
  REQUIRE(Eventually([&] { return !offer("also-broken").ok(); }));
  CHECK(reads == 2);
  CHECK(agent.Metric("rouse_state_copies_total{outcome=\"failed\"}") == 2);
  CHECK_FALSE(agent.Holds({bundle.of, bundle.fingerprint}));
}

TEST_CASE("An agent of a version that keeps no copies is asked rarely, and not waited for") {
  NamedAgents named(1);
  const std::string old_agent = NameBefore(ServingAgent::KeyOf("demo-0"), "demo-0", "old");
  std::atomic<int> asked{0};
  const FakePeer old(named, old_agent, [&](const http::Request& request) {
    if (request.method == "POST") ++asked;
    return http::ErrorResponse(InvalidArgument("use GET"));
  });
  ServingAgent owner(named, "demo-0", {.recheck = kNever});
  REQUIRE(Eventually([&] { return owner.Metric("rouse_state_copies_missing") >= 1; }));
  const int before = asked;
  CHECK(before >= 1);
  owner.Leave();
  CHECK(asked >= before);
  CHECK(asked <= 4);  // Two bundles, once as it serves and once as it leaves.
}
