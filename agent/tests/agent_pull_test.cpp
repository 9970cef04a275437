// The agent program as a whole: real processes, the real socket, UCX over loopback.

#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <catch2/catch.hpp>
#include <optional>
#include <thread>

#include "agent/socket/seqpacket.h"
#include "agent/tests/agent_process.h"
#include "agent/tests/fake_engine.h"
#include "agent/tests/fake_operator.h"
#include "agent/tests/mid_pull.h"
#include "common/sha256.h"

using namespace rouse;
using namespace rouse::agent;

namespace {

// Three slabs of 8 MiB or less, the last chunk and the last slab cut short.
constexpr std::size_t kArenaBytes = (20u << 20) + 512;
// Not all of it comes in the moments that a held source gives.
constexpr std::size_t kLongArenaBytes = (64u << 20) + 512;
// Small enough that some are in place before the others.
constexpr std::uint64_t kSmallChunks = 256u << 10;

std::map<std::string, std::string> FromPeer(std::map<std::string, std::string> more = {}) {
  more.insert({{"ROUSE_PATH", "Peer"}});
  return more;
}

/// An agent whose engine has published `bytes`, servable.
void PublishOn(const AgentProcess& agent, const FakeOperator& fake_operator, const std::string& pod,
               const std::string& bytes, std::uint64_t chunk_bytes = kChunkBytes,
               const Identity& identity = TestIdentity()) {
  auto engine = FakeEngine::Connect(agent.socket());
  REQUIRE(engine.ok());
  auto welcome = engine->Hello(identity);
  REQUIRE(welcome.ok());
  REQUIRE(welcome->body["source"] == "Storage");
  auto published = engine->CreateFillPublish(identity, 0, bytes, chunk_bytes);
  REQUIRE(published.ok());
  INFO(published->body.dump());
  REQUIRE(published->type() == "Ok");
  REQUIRE(fake_operator.WaitForServable(pod));
}

/// A pull has been opened: bytes begin to come, and the engine may start.
bool WaitForBytes(const FakeOperator& fake_operator, const std::string& pod) {
  return fake_operator.WaitFor(pod, [](const AgentReport& report) {
    return report.state == AgentState::kPulling &&
           report.message.find("arriving") != std::string::npos;
  });
}

int Probe(const std::string& address, const std::string& path) {
  auto client = http::Client::Create(address);
  auto answer = (*client)->Send({.target = path});
  return answer.ok() ? answer->status : -1;
}

}  // namespace

TEST_CASE("An engine's weights reach a second agent, and a third from the second") {
  FakeOperator fake_operator;
  const std::string bytes = TestBytes(kArenaBytes, 1);
  AgentProcess first("demo-0", fake_operator.url(), {});
  PublishOn(first, fake_operator, "demo-0", bytes);
  const auto source = fake_operator.Last("demo-0");
  CHECK(source->bytes_by_source.storage == kArenaBytes);
  CHECK(source->weights->bytes == kArenaBytes);
  CHECK(source->weights->identity == IdentityDigest(TestIdentity()));

  AgentProcess second("demo-1", fake_operator.url(), FromPeer());
  REQUIRE(fake_operator.WaitForServable("demo-1"));
  const auto target = fake_operator.Last("demo-1");
  CHECK(target->bytes_by_source.peer == kArenaBytes);
  CHECK(target->bytes_by_source.storage == 0);
  CHECK(target->transport.find("tcp") != std::string::npos);
  CHECK(target->weights->identity == source->weights->identity);
  CHECK(Probe(target->address, "/startupz") == 200);
  CHECK(Probe(target->address, "/readyz") == 503);

  {
    auto engine = FakeEngine::Connect(second.socket());
    REQUIRE(engine.ok());
    auto welcome = engine->Hello(TestIdentity());
    REQUIRE(welcome.ok());
    CHECK(welcome->body["source"] == "Peer");
    auto got = engine->AwaitAndRead(0);
    INFO(got.status().ToString());
    REQUIRE(got.ok());
    CHECK(*got == bytes);
  }
  // Killing the first must not matter to the third.
  first.Signal(SIGKILL);
  REQUIRE(first.Wait() == 128 + SIGKILL);
  fake_operator.NamePeers({{.pod = "demo-1", .node = "node-a", .address = target->address}});
  AgentProcess third("demo-2", fake_operator.url(), FromPeer());
  REQUIRE(fake_operator.WaitForServable("demo-2"));
  auto engine = FakeEngine::Connect(third.socket());
  REQUIRE(engine->Hello(TestIdentity()).ok());
  auto got = engine->AwaitAndRead(0);
  REQUIRE(got.ok());
  CHECK(*got ==
        bytes);  // Also: nobody saw what the second's engine wrote into its private mapping.
}

TEST_CASE(
    "Agents of one node copy from each other's slabs, and over the network where they cannot") {
  FakeOperator fake_operator;
  const TempFolder node;
  const std::map<std::string, std::string> shared = {{"ROUSE_NODE_FOLDER", node.path()}};
  const std::string bytes = TestBytes(kArenaBytes, 9);
  AgentProcess first("demo-0", fake_operator.url(), shared);
  PublishOn(first, fake_operator, "demo-0", bytes);
  const auto check = [&](const AgentProcess& agent, const std::string& pod,
                         const std::string& transport) {
    REQUIRE(fake_operator.WaitForServable(pod));
    const auto report = fake_operator.Last(pod);
    CHECK(report->bytes_by_source.peer == kArenaBytes);
    CHECK(report->transport.find(transport) != std::string::npos);
    auto engine = FakeEngine::Connect(agent.socket());
    REQUIRE(engine->Hello(TestIdentity()).ok());
    const auto got = engine->AwaitAndRead(0);
    REQUIRE(got.ok());
    CHECK(*got == bytes);
  };
  {
    AgentProcess second("demo-1", fake_operator.url(), FromPeer(shared));
    check(second, "demo-1", "node/host");
    CHECK(MetricsOf(*fake_operator.Last("demo-1")).find("transport=\"node/host\"") !=
          std::string::npos);
  }
  {
    // Another node: its folder does not have the first's socket.
    const TempFolder other;
    AgentProcess third("demo-2", fake_operator.url(),
                       FromPeer({{"ROUSE_NODE_FOLDER", other.path()}}));
    check(third, "demo-2", "tcp");
  }
  {
    // Somebody else listens there, and says nothing that an agent would.
    REQUIRE(::unlink((node.path() + "/uid-demo-0.sock").c_str()) == 0);
    const auto listener = SeqpacketListener::Listen(node.path() + "/uid-demo-0.sock");
    REQUIRE(listener.ok());
    AgentProcess fourth("demo-3", fake_operator.url(), FromPeer(shared));
    check(fourth, "demo-3", "tcp");
    CHECK_THAT(fourth.log(), Catch::Contains("a peer of this node is read over the network"));
  }
}

TEST_CASE("A node folder that is not there costs nothing but the short way") {
  FakeOperator fake_operator;
  AgentProcess agent("demo-0", fake_operator.url(), {{"ROUSE_NODE_FOLDER", "/nonexistent"}});
  PublishOn(agent, fake_operator, "demo-0", TestBytes(kArenaBytes, 10));
  CHECK_THAT(agent.log(), Catch::Contains("there is no folder /nonexistent"));
}

TEST_CASE("An NCCL that is not there costs nothing but broadcasts") {
  FakeOperator fake_operator;
  const TempFolder node;
  AgentProcess agent("demo-0", fake_operator.url(),
                     {{"ROUSE_NODE_FOLDER", node.path()}, {"ROUSE_NCCL_LIBRARY", "libnone.so.2"}});
  PublishOn(agent, fake_operator, "demo-0", TestBytes(kArenaBytes, 11));
  CHECK_THAT(agent.log(), Catch::Contains("no broadcasts: peers pull") &&
                              Catch::Contains("no NCCL: libnone.so.2"));
}

TEST_CASE("Weights survive a crash of the engine") {
  FakeOperator fake_operator;
  const std::string bytes = TestBytes(kArenaBytes, 2);
  AgentProcess agent("demo-0", fake_operator.url(), {});
  PublishOn(agent, fake_operator, "demo-0", bytes);  // Its connection is gone after this.
  auto engine = FakeEngine::Connect(agent.socket());
  auto welcome = engine->Hello(TestIdentity());
  REQUIRE(welcome.ok());
  CHECK(welcome->body["source"] == "Peer");
  CHECK(welcome->body["reason"] == "published by this pod's engine");
  auto got = engine->AwaitAndRead(0);
  REQUIRE(got.ok());
  CHECK(*got == bytes);
}

TEST_CASE(
    "An engine whose identity differs in one field is told which, and may load from storage") {
  FakeOperator fake_operator;
  const std::string bytes = TestBytes(kArenaBytes, 3);
  AgentProcess first("demo-0", fake_operator.url(), {});
  PublishOn(first, fake_operator, "demo-0", bytes);
  Identity other = TestIdentity();
  other["dtype"] = "float16";

  SECTION("with fallback Storage") {
    AgentProcess second("demo-1", fake_operator.url(), FromPeer());
    REQUIRE(fake_operator.WaitForServable("demo-1"));
    auto engine = FakeEngine::Connect(second.socket());
    auto welcome = engine->Hello(other);
    REQUIRE(welcome.ok());
    INFO(welcome->body.dump());
    CHECK(welcome->body["source"] == "Storage");
    const std::string reason = welcome->body["reason"];
    CHECK(reason.find("dtype: \"float16\" here, \"bfloat16\" there") != std::string::npos);
    CHECK(reason.find("model:") == std::string::npos);
    // What it loads itself takes the place of what was pulled.
    const std::string own = TestBytes(kArenaBytes, 4);
    auto published = engine->CreateFillPublish(other, 0, own);
    REQUIRE(published.ok());
    CHECK(published->type() == "Ok");
    REQUIRE(fake_operator.WaitFor("demo-1", [&](const AgentReport& report) {
      return report.weights && report.weights->servable &&
             report.weights->identity == IdentityDigest(other);
    }));
  }
  SECTION("with fallback None") {
    AgentProcess second("demo-1", fake_operator.url(),
                        FromPeer({{"ROUSE_WEIGHTS_FALLBACK", "None"}}));
    REQUIRE(fake_operator.WaitForServable("demo-1"));
    auto engine = FakeEngine::Connect(second.socket());
    auto refused = engine->Hello(other);
    REQUIRE(refused.ok());
    CHECK(refused->type() == "Error");
    CHECK(refused->code() == "FailedPrecondition");
    CHECK(refused->message().find("dtype") != std::string::npos);
    REQUIRE(fake_operator.WaitForState("demo-1", AgentState::kFailed));
    CHECK(fake_operator.Last("demo-1")->message.find("dtype") != std::string::npos);
  }
}

TEST_CASE("Two ranks are pulled, and one that waits does not hold up the other") {
  FakeOperator fake_operator;
  const std::string bytes[] = {TestBytes(kArenaBytes, 5), TestBytes(kArenaBytes + 4096, 6)};
  AgentProcess first("demo-0", fake_operator.url(), {});
  {
    auto rank0 = FakeEngine::Connect(first.socket());
    auto rank1 = FakeEngine::Connect(first.socket());
    REQUIRE(rank0->Hello(TestIdentity(0), 0, 2).ok());
    REQUIRE(rank1->Hello(TestIdentity(1), 1, 2).ok());
    CHECK(rank1->CreateFillPublish(TestIdentity(1), 1, bytes[1])->type() == "Ok");
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    CHECK_FALSE(fake_operator.Last("demo-0")->weights.has_value());  // One rank is not all of them.
    CHECK(rank0->CreateFillPublish(TestIdentity(0), 0, bytes[0])->type() == "Ok");
    REQUIRE(fake_operator.WaitForServable("demo-0"));
  }
  // The source stops right after it has handed out its keys: the pull is under way and does not
  // move.
  bool stopped = false;
  FakeSourceProxy proxy(fake_operator.Last("demo-0")->address, [&](const auto& request, auto&) {
    if (request.target != "/v1/weights/open" || stopped) return;
    stopped = true;
    first.SignalAll(SIGSTOP);
  });
  fake_operator.NamePeers({{.pod = "demo-0", .node = "node-a", .address = proxy.url()}});
  AgentProcess second("demo-1", fake_operator.url(),
                      FromPeer({{"ROUSE_PULL_STALL_SECONDS", "30"}}));
  REQUIRE(WaitForBytes(fake_operator, "demo-1"));
  auto rank0 = FakeEngine::Connect(second.socket());
  auto rank1 = FakeEngine::Connect(second.socket());
  REQUIRE(rank0->Hello(TestIdentity(0), 0, 2)->body["source"] == "Peer");
  REQUIRE(
      rank0->Send(json::Dump({{"type", "AwaitWeights"}, {"rank", 0}, {"timeoutMs", 20000}})).ok());
  const auto before = std::chrono::steady_clock::now();
  REQUIRE(rank1->Hello(TestIdentity(1), 1, 2)->body["source"] == "Peer");
  CHECK(rank1->Phase("LoadStarted")->type() == "Ok");
  auto late = rank1->Ask({{"type", "AwaitWeights"}, {"rank", 1}, {"timeoutMs", 100}});
  CHECK(late->code() == "DeadlineExceeded");
  CHECK(std::chrono::steady_clock::now() - before < std::chrono::seconds(15));
  first.SignalAll(SIGCONT);
  auto answer = rank0->Receive();
  REQUIRE(answer.ok());
  CHECK(answer->type() == "Weights");
  auto got1 = rank1->AwaitAndRead(1);
  auto got0 = rank0->AwaitAndRead(0);
  REQUIRE(got1.ok());
  REQUIRE(got0.ok());
  CHECK(*got1 == bytes[1]);
  CHECK(*got0 == bytes[0]);
}

TEST_CASE("When a source dies in mid-pull, the next peer sends the rest") {
  FakeOperator fake_operator;
  const std::string bytes = TestBytes(kLongArenaBytes, 7);
  AgentProcess dying("demo-0", fake_operator.url(), {});
  PublishOn(dying, fake_operator, "demo-0", bytes, kSmallChunks);
  AgentProcess living("demo-1", fake_operator.url(), {});
  PublishOn(living, fake_operator, "demo-1", bytes, kSmallChunks);
  const Peer first{
      .pod = "demo-0", .node = "node-a", .address = fake_operator.Last("demo-0")->address};
  const Peer second{
      .pod = "demo-1", .node = "node-a", .address = fake_operator.Last("demo-1")->address};
  fake_operator.NamePeers({first});
  std::optional<HeldSource> held(dying);
  const auto target = StartMidPull(fake_operator, *held, "demo-2", FromPeer(), kLongArenaBytes);
  dying.SignalAll(SIGKILL);
  held.reset();
  fake_operator.NamePeers({first, second});
  REQUIRE(fake_operator.WaitForServable("demo-2"));
  CHECK(fake_operator.Last("demo-2")->bytes_by_source.peer == kLongArenaBytes);
  const std::string metrics = MetricsOf(*fake_operator.Last("demo-2"));
  CHECK(metrics.find("rouse_pull_seconds_count{outcome=\"error\"} 0") != std::string::npos);
  CHECK(metrics.find("rouse_pull_seconds_count{outcome=\"success\"} 1") != std::string::npos);
  CHECK(metrics.find("rouse_pull_sources_put_aside_total{cause=\"lost\"} 1") != std::string::npos);
  auto engine = FakeEngine::Connect(target->socket());
  const std::string reason = engine->Hello(TestIdentity())->body["reason"];
  CHECK(reason.find("demo-0") != std::string::npos);
  CHECK(reason.find("demo-1") != std::string::npos);
  auto got = engine->AwaitAndRead(0);
  REQUIRE(got.ok());
  CHECK(*got == bytes);
}

TEST_CASE("A peer of another identity does not go on with what another began") {
  FakeOperator fake_operator;
  AgentProcess dying("demo-0", fake_operator.url(), {});
  PublishOn(dying, fake_operator, "demo-0", TestBytes(kLongArenaBytes, 7), kSmallChunks);
  AgentProcess other("demo-1", fake_operator.url(), {});
  Identity identity = TestIdentity();
  identity["dtype"] = "float16";
  PublishOn(other, fake_operator, "demo-1", TestBytes(kLongArenaBytes, 8), kSmallChunks, identity);
  const Peer first{
      .pod = "demo-0", .node = "node-a", .address = fake_operator.Last("demo-0")->address};
  const Peer second{
      .pod = "demo-1", .node = "node-a", .address = fake_operator.Last("demo-1")->address};
  fake_operator.NamePeers({first});
  std::optional<HeldSource> held(dying);
  const auto target =
      StartMidPull(fake_operator, *held, "demo-2", FromPeer({{"ROUSE_PEER_DEADLINE_SECONDS", "2"}}),
                   kLongArenaBytes);
  fake_operator.NamePeers({first, second});
  dying.SignalAll(SIGKILL);
  held.reset();
  // The engine was promised the first identity, so it loads from storage.
  CHECK(Eventually([&] {
    auto engine = FakeEngine::Connect(target->socket());
    return engine.ok() && engine->Hello(TestIdentity())->body["source"] == "Storage";
  }));
  auto engine = FakeEngine::Connect(target->socket());
  const std::string reason = engine->Hello(TestIdentity())->body["reason"];
  CHECK(reason.find("demo-0") != std::string::npos);
  CHECK(reason.find("identity differs from that of the peer before: dtype") != std::string::npos);
}

TEST_CASE("When the only source dies in mid-pull, the instance says so and takes its fallback") {
  FakeOperator fake_operator;
  AgentProcess dying("demo-0", fake_operator.url(), {});
  PublishOn(dying, fake_operator, "demo-0", TestBytes(kLongArenaBytes, 8), kSmallChunks);
  fake_operator.NamePeers(
      {{.pod = "demo-0", .node = "node-a", .address = fake_operator.Last("demo-0")->address}});
  std::optional<HeldSource> held(dying);
  SECTION("Storage") {
    const auto target =
        StartMidPull(fake_operator, *held, "demo-1",
                     FromPeer({{"ROUSE_PEER_DEADLINE_SECONDS", "2"}}), kLongArenaBytes);
    auto early = FakeEngine::Connect(target->socket());
    REQUIRE(early->Hello(TestIdentity())->body["source"] == "Peer");
    dying.SignalAll(SIGKILL);
    held.reset();
    // It waits, hears that nothing will come, and asks again on a new connection.
    auto none = early->Ask({{"type", "AwaitWeights"}, {"rank", 0}, {"timeoutMs", 30000}});
    REQUIRE(none.ok());
    CHECK(none->code() == "Unavailable");
    CHECK(none->message().find("demo-0") != std::string::npos);
    auto again = FakeEngine::Connect(target->socket());
    auto welcome = again->Hello(TestIdentity());
    CHECK(welcome->body["source"] == "Storage");
    CHECK(welcome->body["reason"].get<std::string>().find("demo-0") != std::string::npos);
  }
  SECTION("None") {
    const auto target = StartMidPull(
        fake_operator, *held, "demo-1",
        FromPeer({{"ROUSE_PEER_DEADLINE_SECONDS", "2"}, {"ROUSE_WEIGHTS_FALLBACK", "None"}}),
        kLongArenaBytes);
    dying.SignalAll(SIGKILL);
    held.reset();
    REQUIRE(fake_operator.WaitForState("demo-1", AgentState::kFailed));
    const std::string message = fake_operator.Last("demo-1")->message;
    CHECK(message.find("fallback is None") != std::string::npos);
    CHECK(message.find("demo-0") != std::string::npos);
  }
}

TEST_CASE(
    "When nobody will ever have the weights, the fallback is taken long before the deadline") {
  FakeOperator fake_operator;
  fake_operator.ExpectNobody();
  AgentProcess target("demo-1", fake_operator.url(),
                      FromPeer({{"ROUSE_PEER_DEADLINE_SECONDS", "3600"}}));
  auto engine = FakeEngine::Connect(target.socket());
  auto welcome = engine->Hello(TestIdentity());
  REQUIRE(welcome.ok());
  CHECK(welcome->body["source"] == "Storage");
  CHECK(welcome->body["reason"].get<std::string>().find("no other instance") != std::string::npos);
}

TEST_CASE("An agent that is started again beside an engine that serves pulls when it is asked") {
  FakeOperator fake_operator;
  FakeEngineHttp http_engine;
  const std::string bytes = TestBytes(kArenaBytes, 13);
  AgentProcess source("demo-0", fake_operator.url(), {});
  PublishOn(source, fake_operator, "demo-0", bytes);
  const auto environment = [&](std::map<std::string, std::string> more) {
    more.insert({{"ROUSE_ENGINE_URL", http_engine.url()}, {"ROUSE_SERVED_MODEL", "demo"}});
    return FromPeer(std::move(more));
  };
  AgentProcess first("demo-1", fake_operator.url(), environment({}));
  auto engine = FakeEngine::Connect(first.socket());
  REQUIRE(engine->Hello(TestIdentity()).ok());
  REQUIRE(engine->AwaitAndRead(0).ok());
  http_engine.SetHealthy(true);
  REQUIRE(fake_operator.WaitForState("demo-1", AgentState::kServing));
  first.Signal(SIGKILL);
  REQUIRE(first.Wait() == 128 + SIGKILL);
  const int before = fake_operator.reports("demo-1");

  const std::string fallback = GENERATE("Storage", "None");
  AgentProcess second(
      "demo-1", fake_operator.url(),
      environment({{"ROUSE_ENGINE_SOCKET", first.socket()}, {"ROUSE_WEIGHTS_FALLBACK", fallback}}));
  REQUIRE(fake_operator.WaitFor("demo-1", [&](const AgentReport& report) {
    return fake_operator.reports("demo-1") > before && report.state == AgentState::kServing;
  }));
  CHECK(Probe(fake_operator.Last("demo-1")->address, "/startupz") == 200);
  std::this_thread::sleep_for(std::chrono::seconds(1));
  CHECK(fake_operator.Last("demo-1")->bytes_by_source.peer == 0);
  CHECK_FALSE(fake_operator.Last("demo-1")->weights);

  // The engine is started again.
  auto again = FakeEngine::Connect(first.socket());
  auto welcome = again->Hello(TestIdentity());
  REQUIRE(welcome.ok());
  CHECK(welcome->body["source"] == "Peer");
  CHECK(*again->AwaitAndRead(0) == bytes);
}

TEST_CASE("A target that is killed in mid-pull costs its source nothing but a lease") {
  FakeOperator fake_operator;
  const std::string bytes = TestBytes(kLongArenaBytes, 9);
  AgentProcess source("demo-0", fake_operator.url(), {{"ROUSE_LEASE_SECONDS", "2"}});
  PublishOn(source, fake_operator, "demo-0", bytes, kSmallChunks);
  {
    const HeldSource held(source);
    const auto killed = StartMidPull(fake_operator, held, "demo-1", FromPeer(), kLongArenaBytes);
    killed->Signal(SIGKILL);
    REQUIRE(killed->Wait() == 128 + SIGKILL);
  }
  fake_operator.Forget("demo-1");
  CHECK(Eventually([&] {
    return MetricsOf(*fake_operator.Last("demo-0")).find("rouse_leases_open 0") !=
           std::string::npos;
  }));
  AgentProcess second("demo-2", fake_operator.url(), FromPeer());
  REQUIRE(fake_operator.WaitForServable("demo-2"));
}

TEST_CASE("An engine whose agent was killed in mid-pull finds the weights with the next one") {
  FakeOperator fake_operator;
  const std::string bytes = TestBytes(kLongArenaBytes, 12);
  AgentProcess source("demo-0", fake_operator.url(), {});
  PublishOn(source, fake_operator, "demo-0", bytes, kSmallChunks);
  std::optional<HeldSource> held(source);
  const auto first = StartMidPull(fake_operator, *held, "demo-1",
                                  FromPeer({{"ROUSE_WEIGHTS_FALLBACK", "None"}}), kLongArenaBytes);
  first->Signal(SIGKILL);
  REQUIRE(first->Wait() == 128 + SIGKILL);
  held.reset();
  // The engine is there before the new agent knows of any peer, and must not be turned away for
  // that.
  fake_operator.NamePeers({});
  AgentProcess second(
      "demo-1", fake_operator.url(),
      FromPeer({{"ROUSE_WEIGHTS_FALLBACK", "None"}, {"ROUSE_ENGINE_SOCKET", first->socket()}}));
  auto engine = FakeEngine::Connect(first->socket());
  REQUIRE(engine.ok());
  std::thread operator_finds_it([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    fake_operator.NamePeers(
        {{.pod = "demo-0", .node = "node-a", .address = fake_operator.Last("demo-0")->address}});
  });
  auto welcome = engine->Hello(TestIdentity());
  operator_finds_it.join();
  REQUIRE(welcome.ok());
  INFO(welcome->body.dump());
  CHECK(welcome->body["source"] == "Peer");
  auto got = engine->AwaitAndRead(0);
  REQUIRE(got.ok());
  CHECK(*got == bytes);
}

TEST_CASE("A source whose bytes do not fit its digests is not used") {
  FakeOperator fake_operator;
  const std::string bytes = TestBytes(kArenaBytes, 10);
  AgentProcess source("demo-0", fake_operator.url(), {});
  PublishOn(source, fake_operator, "demo-0", bytes);
  FakeSourceProxy proxy(fake_operator.Last("demo-0")->address,
                        [&](const auto& request, auto& answer) {
                          if (request.target != "/v1/weights/open") return;
                          json::Json body = json::Json::parse(answer.body);
                          std::string digest = body["ranks"][0]["manifest"]["digest"]["chunks"][1];
                          digest[0] = digest[0] == '0' ? '1' : '0';
                          body["ranks"][0]["manifest"]["digest"]["chunks"][1] = digest;
                          answer.body = body.dump();
                        });
  fake_operator.NamePeers({{.pod = "demo-0", .node = "node-a", .address = proxy.url()}});
  AgentProcess target(
      "demo-1", fake_operator.url(),
      FromPeer({{"ROUSE_WEIGHTS_FALLBACK", "None"}, {"ROUSE_PEER_DEADLINE_SECONDS", "2"}}));
  REQUIRE(fake_operator.WaitForState("demo-1", AgentState::kFailed));
  CHECK(fake_operator.Last("demo-1")->message.find("DataLoss") != std::string::npos);
  CHECK(MetricsOf(*fake_operator.Last("demo-1")).find("rouse_digest_mismatch_total 0") ==
        std::string::npos);
}

TEST_CASE("Agents of different versions or launches refuse each other politely") {
  FakeOperator fake_operator;
  AgentProcess source("demo-0", fake_operator.url(), {});
  PublishOn(source, fake_operator, "demo-0", TestBytes(kArenaBytes, 11));
  const std::string address = fake_operator.Last("demo-0")->address;
  auto client = http::Client::Create(address);
  REQUIRE(client.ok());
  const auto open = [&](int version, const std::string& launch) {
    const json::Json body = {{"protocol", "rouse-weights"},
                             {"version", version},
                             {"launchIdentity", launch},
                             {"requester", "default/x"}};
    return (*client)->Send({.method = "POST",
                            .target = "/v1/weights/open",
                            .headers = {{"Content-Type", "application/json"}},
                            .body = body.dump()});
  };
  const auto newer = open(2, "launch-1");
  CHECK(newer->status == 412);
  CHECK(newer->body.find("rouse-weights 2") != std::string::npos);
  CHECK(newer->body.find("rouse-weights 1") != std::string::npos);
  const auto stranger = open(1, "launch-2");
  CHECK(stranger->status == 412);
  CHECK(stranger->body.find("launch-2") != std::string::npos);
  CHECK(open(1, "launch-1")->status == 200);

  FakeSourceProxy proxy(address, [](const auto& request, auto& answer) {
    if (request.target != "/v1/weights/open") return;
    json::Json body = json::Json::parse(answer.body);
    body["version"] = 7;
    answer.body = body.dump();
  });
  fake_operator.NamePeers({{.pod = "demo-0", .node = "node-a", .address = proxy.url()}});
  AgentProcess target("demo-1", fake_operator.url(), FromPeer());
  REQUIRE(fake_operator.WaitForState("demo-1", AgentState::kReady));
  auto engine = FakeEngine::Connect(target.socket());
  auto welcome = engine->Hello(TestIdentity());
  CHECK(welcome->body["source"] == "Storage");
  const std::string reason = welcome->body["reason"];
  CHECK(reason.find("rouse-weights 7") != std::string::npos);
  CHECK(reason.find("rouse-weights 1") != std::string::npos);

  auto old_engine = FakeEngine::Connect(target.socket());
  auto refused = old_engine->Hello(TestIdentity(), 0, 1, 3);
  CHECK(refused->code() == "FailedPrecondition");
  CHECK(refused->message().find("rouse-engine 3") != std::string::npos);
  CHECK(refused->message().find("rouse-engine 1") != std::string::npos);
}
