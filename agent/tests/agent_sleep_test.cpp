// Guards: real agents whose engine sleeps and wakes, and what may go wrong in between.

#include <signal.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>
#include <optional>
#include <thread>

#include "agent/tests/agent_process.h"
#include "agent/tests/fake_engine.h"
#include "agent/tests/fake_operator.h"
#include "agent/tests/sleeping_engine.h"
#include "common/role.h"

using namespace rouse;
using namespace rouse::agent;
using Manner = SleepingEngine::Manner;
namespace fs = std::filesystem;

namespace {

constexpr std::size_t kSleepArenaBytes = (20u << 20) + 512;

http::Response Send(const std::string& address, const std::string& method, const std::string& path,
                    const std::string& body = "") {
  auto client = http::Client::Create(address);
  REQUIRE(client.ok());
  http::Request request{.method = method, .target = path, .headers = {}, .body = body};
  if (!body.empty()) request.headers["Content-Type"] = "application/json";
  auto answer = (*client)->Send(request);
  INFO(answer.status().ToString());
  REQUIRE(answer.ok());
  return *answer;
}

/// Memory of weights that a process and its children have: mappings and descriptors.
int WeightMappings(pid_t pid) {
  int count = 0;
  const std::string folder = "/proc/" + std::to_string(pid);
  std::ifstream maps(folder + "/maps");
  for (std::string line; std::getline(maps, line);) {
    count += line.find("rouse-rank") != std::string::npos ? 1 : 0;
  }
  std::error_code ended;
  for (fs::directory_iterator it(folder + "/fd", ended), end; !ended && it != end;
       it.increment(ended)) {
    std::error_code closed;
    const std::string link = fs::read_symlink(it->path(), closed).string();
    count += link.find("rouse-rank") != std::string::npos ? 1 : 0;
  }
  std::ifstream children(folder + "/task/" + std::to_string(pid) + "/children");
  for (pid_t child = 0; children >> child;) count += WeightMappings(child);
  return count;
}

std::map<std::string, std::string> Within(int seconds, const char* deadline) {
  return {{deadline, std::to_string(seconds)}};
}

/// To fall asleep in, beside what requests may take.
std::map<std::string, std::string> ToSleepWithin(int seconds, int drain_seconds) {
  return {{"ROUSE_SLEEP_DEADLINE_SECONDS", std::to_string(seconds)},
          {"ROUSE_SLEEP_DRAIN_SECONDS", std::to_string(drain_seconds)}};
}

std::map<std::string, std::string> Capturing(const char* trigger) {
  return {{"ROUSE_GRAPH_CAPTURE", "Lazy"}, {"ROUSE_GRAPH_CAPTURE_TRIGGER", trigger}};
}

/// Two instances that serve the same weights: one to be put to sleep, one to wake it from.
struct Pair {
  explicit Pair(std::map<std::string, std::string> environment = {},
                const std::string& guards_bytes = "", int requests = 0) {
    http_engine.SetHealthy(true);
    http_engine.SetRequests(requests);
    environment.insert({{"ROUSE_ENGINE_URL", http_engine.url()}, {"ROUSE_SERVED_MODEL", "demo"}});
    guard = std::make_unique<AgentProcess>("demo-0", fake_operator.url(), environment);
    peer = std::make_unique<AgentProcess>("demo-1", fake_operator.url(),
                                          std::map<std::string, std::string>());
    Publish(*peer, "demo-1", bytes, TestIdentity());
    engine.emplace(
        guard->socket(),
        Publish(*guard, "demo-0", guards_bytes.empty() ? bytes : guards_bytes, TestIdentity()),
        std::vector<OwnedFd>());
    REQUIRE(fake_operator.WaitForState("demo-0", AgentState::kServing));
    address = fake_operator.Last("demo-0")->address;
    // The canary's answer is recorded behind the first token's.
    REQUIRE(Eventually([&] { return http_engine.canaries() >= 2; }));
  }

  FakeEngine Publish(const AgentProcess& agent, const std::string& pod, const std::string& content,
                     const Identity& identity) const {
    auto rank = FakeEngine::Connect(agent.socket());
    REQUIRE(rank.ok());
    REQUIRE(rank->Hello(identity)->type() == "Welcome");
    REQUIRE(rank->CreateFillPublish(identity, 0, content)->type() == "Ok");
    REQUIRE(fake_operator.WaitForServable(pod));
    return *std::move(rank);
  }

  std::vector<Peer> Peers() const { return {PeerAt(fake_operator.Last("demo-1")->address)}; }
  static Peer PeerAt(const std::string& where) {
    return {.pod = "demo-1", .node = "node-a", .address = where};
  }

  http::Response Sleep() const { return TellRole(address, {.role = Role::kGuard, .peers = {}}); }
  http::Response Wake() const {
    return TellRole(address, {.role = Role::kActive, .peers = Peers()});
  }
  void FallAsleep() const {
    // The answer of the canary may be recorded a moment after it was given.
    REQUIRE(Eventually([&] { return Sleep().status == 202; }));
    REQUIRE(fake_operator.WaitForState("demo-0", AgentState::kAsleep));
  }
  bool Fails(const std::string& said) const {
    if (!fake_operator.WaitForState("demo-0", AgentState::kFailed)) return false;
    const std::string message = fake_operator.Last("demo-0")->message;
    UNSCOPED_INFO(message);
    return message.find(said) != std::string::npos;
  }

  FakeOperator fake_operator;
  FakeEngineHttp http_engine;
  const std::string bytes = TestBytes(kSleepArenaBytes, 1);
  std::unique_ptr<AgentProcess> guard;
  std::unique_ptr<AgentProcess> peer;
  std::optional<SleepingEngine> engine;
  std::string address;
};

}  // namespace

TEST_CASE("A guard gives all of its weights' memory back, and wakes with a peer's") {
  Pair pair;
  CHECK(WeightMappings(pair.guard->pid()) > 0);
  pair.FallAsleep();
  CHECK(WeightMappings(pair.guard->pid()) == 0);
  CHECK(pair.engine->sleeps() == 1);
  CHECK(Send(pair.address, "GET", "/readyz").status == 503);
  CHECK(Send(pair.address, "GET", "/startupz").status == 200);
  REQUIRE(pair.fake_operator.WaitFor(
      "demo-0", [](const AgentReport& report) { return !report.weights.has_value(); }));
  CHECK(pair.Sleep().status == 202);  // It is one already.
  CHECK(pair.engine->sleeps() == 1);

  for (int round = 1; round <= 3; ++round) {
    const http::Response told = pair.Wake();
    CHECK(told.status == 202);
    REQUIRE(pair.fake_operator.WaitForState("demo-0", AgentState::kServing));
    CHECK(pair.engine->wakes() == round);
    CHECK(pair.engine->bytes() == pair.bytes);
    CHECK(Send(pair.address, "GET", "/readyz").status == 200);
    CHECK(pair.Wake().status == 202);  // It is awake already.
    REQUIRE(pair.fake_operator.WaitFor("demo-0", [](const AgentReport& report) {
      return report.timeline && report.timeline->path == StartPath::kWake;
    }));
    const Timeline timeline = *pair.fake_operator.Last("demo-0")->timeline;
    REQUIRE(timeline.phases.size() == 5);  // Decoding has checked that they partition it.
    CHECK(timeline.phases[0].name == "Command");
    CHECK(timeline.phases[4].name == "Canary");
    CHECK(timeline.phases[1].end_us > timeline.phases[0].end_us);
    CHECK(timeline.phases[4].end_us > timeline.phases[3].end_us);
    REQUIRE(timeline.lanes.size() == 1);
    CHECK(timeline.lanes[0].name == "Pull");
    CHECK(WeightMappings(pair.guard->pid()) > 0);
    if (round < 3) {
      pair.FallAsleep();
      CHECK(WeightMappings(pair.guard->pid()) == 0);
    }
  }
  const std::string metrics = Send(pair.address, "GET", "/metrics").body;
  for (const std::string line :
       {"rouse_wakes_total{outcome=\"success\"} 3", "rouse_wakes_total{outcome=\"error\"} 0",
        "rouse_sleep_seconds_count 3", "rouse_guard_gpu_bytes 123",
        "rouse_phase_seconds{path=\"Wake\",phase=\"Map\"}", "rouse_start_seconds{path=\"Wake\"}"}) {
    INFO(line << " in\n" << metrics);
    CHECK(metrics.find(line) != std::string::npos);
  }
  // What it woke with is served on.
  REQUIRE(pair.fake_operator.WaitForServable("demo-0"));
  pair.fake_operator.NamePeers({Pair::PeerAt(pair.address)});
  AgentProcess third("demo-2", pair.fake_operator.url(), {{"ROUSE_PATH", "Peer"}});
  REQUIRE(pair.fake_operator.WaitForServable("demo-2"));
  auto engine = FakeEngine::Connect(third.socket());
  REQUIRE(engine->Hello(TestIdentity())->body["source"] == "Peer");
  CHECK(*engine->AwaitAndRead(0) == pair.bytes);
}

TEST_CASE("The bytes that a guard wakes with are the peer's") {
  Pair pair({}, TestBytes(kSleepArenaBytes, 2));
  pair.FallAsleep();
  REQUIRE(pair.Wake().status == 202);
  REQUIRE(pair.fake_operator.WaitForState("demo-0", AgentState::kServing));
  CHECK(pair.engine->bytes() == pair.bytes);
}

TEST_CASE("A peer that never ends its lease keeps a guard's memory for some seconds at most") {
  Pair pair;
  const std::string open = R"({"protocol":"rouse-weights","version":1,"launchIdentity":"launch-1",)"
                           R"("requester":"default/x"})";
  REQUIRE(Send(pair.address, "POST", "/v1/weights/open", open).status == 200);
  const auto began = std::chrono::steady_clock::now();
  pair.FallAsleep();
  CHECK(std::chrono::steady_clock::now() - began > std::chrono::seconds(4));
  CHECK(WeightMappings(pair.guard->pid()) == 0);
  CHECK(Send(pair.address, "POST", "/v1/weights/open", open).status == 503);
}

TEST_CASE("What cannot be done now is refused, and changes nothing") {
  Pair pair;
  SECTION("nobody to wake with") {
    pair.FallAsleep();
    const auto told = TellRole(pair.address, {.role = Role::kActive, .peers = {}});
    CHECK(told.status == 400);
    CHECK(told.body.find("peers") != std::string::npos);
    CHECK(pair.fake_operator.Last("demo-0")->state == AgentState::kAsleep);
    REQUIRE(pair.Wake().status == 202);
    REQUIRE(pair.fake_operator.WaitForState("demo-0", AgentState::kServing));
  }
  SECTION("no engine takes commands") {
    pair.engine->Die();
    const std::string ended = "engine connection ended";
    REQUIRE(Eventually([&] {
      const std::string log = pair.guard->log();
      const auto first = log.find(ended);
      return first != std::string::npos && log.find(ended, first + 1) != std::string::npos;
    }));
    CHECK(pair.Sleep().status == 409);
    CHECK(pair.Sleep().body.find("attached") != std::string::npos);
    CHECK(Send(pair.address, "GET", "/readyz").status == 200);
  }
  SECTION("an instance that does not serve") {
    const auto told = TellRole(pair.fake_operator.Last("demo-1")->address, {.role = Role::kGuard});
    CHECK(told.status == 409);
    CHECK(told.body.find("does not serve") != std::string::npos);
    REQUIRE(pair.fake_operator.WaitForServable("demo-1"));
  }
  SECTION("waking an instance that is going to sleep, and one that wakes going to sleep") {
    pair.engine->SetManner(Manner::kHangs);
    REQUIRE(Eventually([&] { return pair.Sleep().status == 202; }));
    REQUIRE(pair.fake_operator.WaitForState("demo-0", AgentState::kSleeping));
    CHECK(pair.Wake().status == 409);
    CHECK(pair.Wake().body.find("not asleep yet") != std::string::npos);
  }
  SECTION("nonsense") {
    for (const auto& [body, status] :
         {std::pair{std::string("{}"), 400}, std::pair{std::string(), 400},
          std::pair{std::string(R"({"protocol":"rouse-role","version":1,"role":"Boss"})"), 400},
          std::pair{std::string(R"({"protocol":"rouse-role","version":9,"role":"Guard"})"), 412}}) {
      INFO(body);
      CHECK(Send(pair.address, "POST", "/v1/role", body).status == status);
    }
    CHECK(Send(pair.address, "GET", "/v1/role").status == 405);
  }
}

TEST_CASE("An engine that cannot sleep goes on serving, and its weights are served on") {
  Pair pair;
  pair.engine->SetManner(Manner::kFails);
  REQUIRE(pair.Sleep().status == 202);
  REQUIRE(Eventually(
      [&] { return pair.guard->log().find("command Sleep: out of memory") != std::string::npos; }));
  REQUIRE(pair.fake_operator.WaitForState("demo-0", AgentState::kServing));
  REQUIRE(pair.fake_operator.WaitForServable("demo-0"));
  AgentProcess third("demo-2", pair.fake_operator.url(), {{"ROUSE_PATH", "Peer"}});
  REQUIRE(pair.fake_operator.WaitForServable("demo-2"));
  pair.engine->SetManner(Manner::kAsTold);
  pair.FallAsleep();
  CHECK(WeightMappings(pair.guard->pid()) == 0);
}

TEST_CASE("Graphs that were left out are captured in idle moments, until none is left") {
  Pair pair(Capturing("Idle"), "",
            /*requests=*/1);
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  CHECK(pair.engine->graphs_left() == SleepingEngine::kGraphs);
  pair.http_engine.SetRequests(0);
  REQUIRE(Eventually([&] { return pair.engine->graphs_left() == 0; }));
  const auto has = [&](const std::string& line) {
    return Send(pair.address, "GET", "/metrics").body.find(line) != std::string::npos;
  };
  CHECK(Eventually([&] { return has("rouse_graphs_left 0"); }));
  CHECK(has("rouse_graphs_captured_total " + std::to_string(SleepingEngine::kGraphs)));
  const int commands = pair.engine->captures();
  CHECK(commands > 1);
  pair.FallAsleep();
  CHECK(pair.engine->captures() == commands);
}

TEST_CASE("How many graphs a new engine has left is not known from the one before") {
  Pair pair(Capturing("Idle"));
  const auto has = [&](const std::string& line) {
    return Send(pair.address, "GET", "/metrics").body.find(line) != std::string::npos;
  };
  REQUIRE(Eventually([&] { return has("rouse_graphs_left 0"); }));
  pair.http_engine.SetRequests(1);
  pair.engine->Die();
  auto next = FakeEngine::Connect(pair.guard->socket());
  REQUIRE(next.ok());
  REQUIRE(next->Attach()->type() == "Attached");
  CHECK(!has("rouse_graphs_left 0"));
}

TEST_CASE("No graphs are asked for where the engine captures them all by itself") {
  Pair pair(Capturing("FirstRequest"));
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  CHECK(pair.engine->captures() == 0);
}

TEST_CASE("A sleep that does not work out fails with its reason") {
  SECTION("the engine never answers") {
    Pair pair(ToSleepWithin(1, 0));
    pair.engine->SetManner(Manner::kHangs);
    REQUIRE(Eventually([&] { return pair.Sleep().status == 202; }));
    CHECK(pair.Fails("not asleep within 1 s: still waiting for the engine to go to sleep"));
  }
  SECTION("a rank keeps its arena") {
    // Time enough, on a busy machine, for all that comes before.
    Pair pair(ToSleepWithin(5, 0));
    pair.engine->SetManner(Manner::kKeeps);
    REQUIRE(Eventually([&] { return pair.Sleep().status == 202; }));
    CHECK(pair.Fails("waiting for every rank to give its weights up"));
    CHECK(WeightMappings(pair.guard->pid()) > 0);
  }
  SECTION("the engine dies") {
    Pair pair;
    pair.engine->SetManner(Manner::kDies);
    REQUIRE(Eventually([&] { return pair.Sleep().status == 202; }));
    CHECK(pair.Fails("sleep failed: "));
  }
}

TEST_CASE("Requests that take as long as they may do not make a sleep fail") {
  Pair pair(ToSleepWithin(8, 9));
  pair.engine->SetManner(Manner::kDrains);
  pair.FallAsleep();
  CHECK(pair.engine->sleeps() == 1);
}

TEST_CASE("An engine that dies while it sleeps is lost, and the next one gets no weights") {
  Pair pair;
  pair.FallAsleep();
  pair.engine->Die();
  CHECK(pair.Fails("lost while asleep: "));
  CHECK(pair.Wake().status == 409);
  auto again = FakeEngine::Connect(pair.guard->socket());
  const auto welcome = again->Hello(TestIdentity());
  REQUIRE(welcome.ok());
  CHECK(welcome->type() == "Error");
  CHECK(pair.fake_operator.Last("demo-0")->message.find("lost while asleep") != std::string::npos);
}

TEST_CASE("A wake that does not work out fails with its reason") {
  SECTION("the engine cannot") {
    Pair pair;
    pair.FallAsleep();
    pair.engine->SetManner(Manner::kFails);
    REQUIRE(pair.Wake().status == 202);
    CHECK(pair.Fails("wake failed: command Wake: out of memory"));
    CHECK(
        Send(pair.address, "GET", "/metrics").body.find("rouse_wakes_total{outcome=\"error\"} 1") !=
        std::string::npos);
  }
  SECTION("the engine never answers") {
    Pair pair(Within(1, "ROUSE_WAKE_DEADLINE_SECONDS"));
    pair.FallAsleep();
    pair.engine->SetManner(Manner::kHangs);
    REQUIRE(pair.Wake().status == 202);
    CHECK(pair.Fails("not awake within 1 s: still waiting for the "));
  }
  SECTION("the engine dies") {
    Pair pair;
    pair.FallAsleep();
    pair.engine->SetManner(Manner::kDies);
    REQUIRE(pair.Wake().status == 202);
    CHECK(pair.Fails("wake failed: "));
  }
  SECTION("its peer cannot be reached") {
    Pair pair(Within(1, "ROUSE_PEER_DEADLINE_SECONDS"));
    pair.FallAsleep();
    REQUIRE(TellRole(pair.address,
                     {.role = Role::kActive, .peers = {Pair::PeerAt("http://127.0.0.1:1")}})
                .status == 202);
    CHECK(pair.Fails("demo-1 (http://127.0.0.1:1)"));
    CHECK(WeightMappings(pair.guard->pid()) == 0);
    CHECK(Eventually([&] { return !pair.engine->error().empty(); }));
  }
  SECTION("its canary says something else") {
    Pair pair;
    pair.FallAsleep();
    pair.http_engine.SetText("y");
    REQUIRE(pair.Wake().status == 202);
    CHECK(pair.Fails("canary: the engine answers \"yyyy\", before it slept it answered \"xxxx\""));
    CHECK(Send(pair.address, "GET", "/readyz").status == 503);
  }
}

TEST_CASE("A canary that was answered among other requests does not fail a wake") {
  Pair pair;
  SECTION("when it was recorded first") {
    // As it answers alone, and with the graphs that it has by now.
    pair.http_engine.SetText("y");
    pair.FallAsleep();
  }
  SECTION("when it woke") {
    pair.FallAsleep();
    pair.http_engine.SetTextFor(3, "y");
  }
  REQUIRE(pair.Wake().status == 202);
  CHECK(pair.fake_operator.WaitForState("demo-0", AgentState::kServing));
}

TEST_CASE("A guard wakes with no other weights than those that it slept with") {
  Pair pair;
  pair.FallAsleep();
  AgentProcess other("demo-2", pair.fake_operator.url(), {});
  SECTION("another identity") {
    Identity identity = TestIdentity();
    identity["dtype"] = "float16";
    pair.Publish(other, "demo-2", pair.bytes, identity);
  }
  SECTION("another layout") {
    pair.Publish(other, "demo-2", TestBytes(kSleepArenaBytes + 512, 3), TestIdentity());
  }
  const auto began = std::chrono::steady_clock::now();
  REQUIRE(
      TellRole(pair.address, {.role = Role::kActive,
                              .peers = {Pair::PeerAt(pair.fake_operator.Last("demo-2")->address)}})
          .status == 202);
  CHECK(pair.Fails("what slept"));
  CHECK(std::chrono::steady_clock::now() - began < std::chrono::seconds(15));
  CHECK(pair.engine->wakes() == 0);
}

TEST_CASE("Damaged bytes wake nobody") {
  Pair pair(Within(1, "ROUSE_PEER_DEADLINE_SECONDS"));
  pair.FallAsleep();
  // The peer's digest of one chunk is not that of its bytes.
  const FakeSourceProxy proxy(pair.fake_operator.Last("demo-1")->address,
                              [](const http::Request& request, http::Response& answer) {
                                if (request.target != "/v1/weights/open") return;
                                json::Json body = json::Json::parse(answer.body);
                                if (!body.contains("ranks")) return;
                                json::Json& chunks =
                                    body["ranks"][0]["manifest"]["digest"]["chunks"];
                                chunks[1] = std::string(32, '0');
                                answer.body = body.dump();
                              });
  REQUIRE(TellRole(pair.address, {.role = Role::kActive, .peers = {Pair::PeerAt(proxy.url())}})
              .status == 202);
  CHECK(pair.Fails("another digest than the manifest's"));
  CHECK(pair.engine->wakes() == 0);
}

TEST_CASE(
    "An agent that is started again while its engine sleeps does not take it for one that serves") {
  Pair pair;
  pair.FallAsleep();
  pair.guard->Signal(SIGKILL);
  REQUIRE(pair.guard->Wait() == 128 + SIGKILL);
  AgentProcess second("demo-3", pair.fake_operator.url(),
                      {{"ROUSE_ENGINE_URL", pair.http_engine.url()},
                       {"ROUSE_SERVED_MODEL", "demo"},
                       {"ROUSE_ENGINE_SOCKET", pair.guard->socket()}});
  REQUIRE(pair.fake_operator.WaitForState("demo-3", AgentState::kFailed));
  CHECK(pair.fake_operator.Last("demo-3")->message.find("started again while its engine slept") !=
        std::string::npos);
  const std::string address = pair.fake_operator.Last("demo-3")->address;
  // It reports before it answers.
  REQUIRE(Eventually([&] { return Send(address, "GET", "/healthz").status == 200; }));
  CHECK(Send(address, "GET", "/readyz").status == 503);
  CHECK(TellRole(address, {.role = Role::kActive, .peers = pair.Peers()}).status == 409);
  auto again = FakeEngine::Connect(pair.guard->socket());
  CHECK(again->Hello(TestIdentity())->type() == "Error");
}
