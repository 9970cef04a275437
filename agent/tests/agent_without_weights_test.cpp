// Guards that begin without weights: real agents whose engine has placeholders until it is woken.

#include <signal.h>

#include <catch2/catch.hpp>
#include <optional>

#include "agent/tests/agent_process.h"
#include "agent/tests/fake_engine.h"
#include "agent/tests/fake_operator.h"
#include "agent/tests/sleeping_engine.h"
#include "common/role.h"

using namespace rouse;
using namespace rouse::agent;
using Manner = SleepingEngine::Manner;

namespace {

constexpr std::size_t kBeginnersBytes = (20u << 20) + 512;

/// A guard that is to begin without weights, whose engine has not published anything yet.
struct Beginner {
  Beginner() {
    guard = std::make_unique<AgentProcess>("demo-0", fake_operator.url(), Environment());
    rank.emplace(Connected());
  }
  std::map<std::string, std::string> Environment() const {
    return {{"ROUSE_ENGINE_URL", http_engine.url()},
            {"ROUSE_SERVED_MODEL", "demo"},
            {"ROUSE_BEGIN_WITHOUT_WEIGHTS", "true"}};
  }
  FakeEngine Connected() const {
    auto connected = FakeEngine::Connect(guard->socket());
    REQUIRE(connected.ok());
    const auto welcome = connected->Hello(TestIdentity());
    REQUIRE(welcome->type() == "Welcome");
    CHECK(welcome->body["source"] == "Nowhere");
    return *std::move(connected);
  }
  void Publish(bool as_placeholders) {
    REQUIRE(
        rank->CreateFillPublish(TestIdentity(), 0, bytes, kChunkBytes, as_placeholders)->type() ==
        "Ok");
  }
  /// The engine answers requests from now on, and takes commands.
  void Start(Manner manner = Manner::kAsTold) {
    engine.emplace(guard->socket(), *std::move(rank), std::vector<OwnedFd>());
    engine->SetManner(manner);
    http_engine.SetHealthy(true);
  }
  bool EverServed() const { return guard->log().find("\"to\":\"Serving\"") != std::string::npos; }

  FakeOperator fake_operator;
  FakeEngineHttp http_engine;
  const std::string bytes = TestBytes(kBeginnersBytes, 1);
  std::unique_ptr<AgentProcess> guard;
  std::optional<FakeEngine> rank;
  std::optional<SleepingEngine> engine;
};

}  // namespace

TEST_CASE("A guard that began without weights falls asleep by itself, and wakes with a peer's") {
  Beginner beginner;
  beginner.Publish(true);
  beginner.Start();
  REQUIRE(beginner.fake_operator.WaitForState("demo-0", AgentState::kAsleep));
  CHECK_FALSE(beginner.EverServed());
  CHECK_FALSE(beginner.fake_operator.Last("demo-0")->weights);
  CHECK(beginner.fake_operator.Last("demo-0")->bytes_by_source.storage == 0);

  const std::string weights = TestBytes(kBeginnersBytes, 2);
  AgentProcess peer("demo-1", beginner.fake_operator.url(), {});
  auto source = FakeEngine::Connect(peer.socket());
  REQUIRE(source->Hello(TestIdentity())->body["source"] == "Storage");
  REQUIRE(source->CreateFillPublish(TestIdentity(), 0, weights)->type() == "Ok");
  REQUIRE(beginner.fake_operator.WaitForServable("demo-1"));
  const Peer from{
      .pod = "demo-1", .node = "node-a", .address = beginner.fake_operator.Last("demo-1")->address};
  const std::string address = beginner.fake_operator.Last("demo-0")->address;
  REQUIRE(TellRole(address, {.role = Role::kActive, .peers = {from}}).status == 202);
  REQUIRE(beginner.fake_operator.WaitForState("demo-0", AgentState::kServing));
  CHECK(beginner.engine->bytes() == weights);
  REQUIRE(beginner.fake_operator.WaitForServable("demo-0"));

  // From here on it is a guard as any other: with an answer that a wake is judged by.
  REQUIRE(TellRole(address, {.role = Role::kGuard, .peers = {}}).status == 202);
  REQUIRE(beginner.fake_operator.WaitForState("demo-0", AgentState::kAsleep));
  beginner.http_engine.SetText("y");
  REQUIRE(TellRole(address, {.role = Role::kActive, .peers = {from}}).status == 202);
  REQUIRE(beginner.fake_operator.WaitForState("demo-0", AgentState::kFailed));
  CHECK(beginner.fake_operator.Last("demo-0")->message.find("canary") != std::string::npos);
}

TEST_CASE("A guard whose engine has read weights after all is one as any other") {
  Beginner beginner;
  beginner.Publish(false);
  beginner.Start();
  REQUIRE(beginner.fake_operator.WaitForState("demo-0", AgentState::kServing));
  REQUIRE(beginner.fake_operator.WaitForServable("demo-0"));
  CHECK(beginner.EverServed());
  CHECK(beginner.engine->sleeps() == 0);  // That is for the operator to say.
}

TEST_CASE("An engine that begins without weights and cannot sleep is of no use") {
  Beginner beginner;
  beginner.Publish(true);
  beginner.Start(Manner::kFails);
  REQUIRE(beginner.fake_operator.WaitForState("demo-0", AgentState::kFailed));
  CHECK(beginner.fake_operator.Last("demo-0")->message.find("began without weights") !=
        std::string::npos);
  CHECK_FALSE(beginner.EverServed());
}

TEST_CASE("An agent that is started again beside an engine without weights never lets it serve") {
  Beginner beginner;
  beginner.Publish(true);
  beginner.guard->Signal(SIGKILL);
  REQUIRE(beginner.guard->Wait() == 128 + SIGKILL);
  auto environment = beginner.Environment();
  environment["ROUSE_ENGINE_SOCKET"] = beginner.guard->socket();
  beginner.http_engine.SetHealthy(true);
  AgentProcess second("demo-3", beginner.fake_operator.url(), environment);
  REQUIRE(beginner.fake_operator.WaitForState("demo-3", AgentState::kFailed));
  CHECK(beginner.fake_operator.Last("demo-3")->message.find("had no weights yet") !=
        std::string::npos);
}
