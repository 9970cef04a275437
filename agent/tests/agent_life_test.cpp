// The life of one agent: from its start to the first token, an engine's crash, the operator's
// absence, its end.

#include <signal.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <cstdio>
#include <filesystem>
#include <thread>

#include "agent/tests/agent_process.h"
#include "agent/tests/fake_engine.h"
#include "agent/tests/fake_operator.h"
#include "agent/tests/paths.h"

using namespace rouse;
using namespace rouse::agent;

namespace {

constexpr std::size_t kLifeArenaBytes = 5u << 20;

std::int64_t Now() {
  return std::chrono::duration_cast<std::chrono::microseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

http::Response Get(const std::string& address, const std::string& path) {
  auto client = http::Client::Create(address);
  REQUIRE(client.ok());
  auto answer = (*client)->Send({.target = path});
  INFO(answer.status().ToString());
  REQUIRE(answer.ok());
  return *answer;
}

void Load(const AgentProcess& agent, const std::string& bytes) {
  auto engine = FakeEngine::Connect(agent.socket());
  REQUIRE(engine->Hello(TestIdentity())->type() == "Welcome");
  REQUIRE(engine->Phase("EngineImported")->type() == "Ok");
  REQUIRE(engine->Phase("LoadStarted")->type() == "Ok");
  REQUIRE(engine->CreateFillPublish(TestIdentity(), 0, bytes)->type() == "Ok");
  REQUIRE(engine->Phase("ModelReady")->type() == "Ok");
}

/// An engine whose only rank computes on this GPU.
FakeEngine OnGpu(const AgentProcess& agent, const std::string& gpu) {
  auto engine = FakeEngine::Connect(agent.socket());
  REQUIRE(engine.ok());
  REQUIRE(engine
              ->Ask({{"type", "Hello"},
                     {"protocol", "rouse-engine"},
                     {"version", 1},
                     {"pid", ::getpid()},
                     {"rank", 0},
                     {"worldSize", 1},
                     {"engine", "fake"},
                     {"engineVersion", "1"},
                     {"gpu", gpu},
                     {"identity", ToJson(TestIdentity())}})
              ->type() == "Welcome");
  return *std::move(engine);
}

}  // namespace

TEST_CASE("An instance whose GPU fails has failed, and says by which Xid") {
  FakeOperator fake_operator;
  TempFolder happens;
  const std::string events = happens.path() + "/events";
  AgentProcess agent("demo-0", fake_operator.url(),
                     {{"LD_LIBRARY_PATH", kFakeNvmlFolder}, {"ROUSE_FAKE_NVML", events}});
  const FakeEngine engine = OnGpu(agent, "GPU-1");
  happens.Write("events", "GPU-1 31\nGPU-2 79\n");  // The engine's own doing, and another's GPU.
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  REQUIRE(fake_operator.Last("demo-0").has_value());
  CHECK(fake_operator.Last("demo-0")->state != AgentState::kFailed);
  happens.Write("events", "GPU-1 31\nGPU-2 79\nGPU-1 79\n");
  REQUIRE(fake_operator.WaitForState("demo-0", AgentState::kFailed));
  CHECK(fake_operator.Last("demo-0")->message ==
        "GPU-1 has failed: Xid 79 (the GPU has fallen off the bus); look at its node's log and "
        "NVIDIA's catalogue of Xids");
  const std::string metrics = Get(fake_operator.Last("demo-0")->address, "/metrics").body;
  CHECK(metrics.find("rouse_gpu_xids_total{xid=\"79\"} 1") != std::string::npos);
  CHECK(metrics.find("rouse_gpu_xids_total{xid=\"31\"} 1") != std::string::npos);
}

TEST_CASE("A sanitizer's report in what a process wrote is found") {
  const std::string json = "{\"message\":\"all is well\"}\n";
  CHECK(SanitizerReport("").empty());
  CHECK(SanitizerReport(json).empty());
  for (const std::string report :
       {"WARNING: ThreadSanitizer: data race (pid=7)\n  Write of size 8\n",
        "==7==ERROR: AddressSanitizer: heap-use-after-free\n    #0\n",
        "==7==ERROR: LeakSanitizer: detected memory leaks\n",
        "agent/main.cpp:3:4: runtime error: signed integer overflow\n"}) {
    CHECK(SanitizerReport(report) == report);
    CHECK(SanitizerReport(json + report) == report);
  }
}

TEST_CASE("A start from storage goes through its states, and its timeline adds up") {
  FakeOperator fake_operator;
  FakeEngineHttp http_engine;
  const std::int64_t decided = Now() - 1'000'000;
  AgentProcess agent("demo-0", fake_operator.url(),
                     {{"ROUSE_ENGINE_URL", http_engine.url()},
                      {"ROUSE_SERVED_MODEL", "demo"},
                      {"ROUSE_DECIDED_AT_US", std::to_string(decided)}});
  REQUIRE(fake_operator.WaitForState("demo-0", AgentState::kReady));
  const std::string address = fake_operator.Last("demo-0")->address;
  CHECK(Get(address, "/startupz").status == 200);
  CHECK(Get(address, "/healthz").status == 200);
  CHECK(Get(address, "/readyz").status == 503);
  Load(agent, TestBytes(kLifeArenaBytes, 1));
  REQUIRE(fake_operator.WaitForState("demo-0", AgentState::kWarming));
  http_engine.SetAnswers(false);
  http_engine.SetHealthy(true);
  REQUIRE(fake_operator.WaitFor("demo-0", [](const AgentReport& report) {
    return report.message.find("no token today") != std::string::npos;
  }));
  CHECK(Get(address, "/readyz").status == 503);
  http_engine.SetAnswers(true);
  REQUIRE(fake_operator.WaitForState("demo-0", AgentState::kServing));
  CHECK(Get(address, "/readyz").status == 200);
  const json::Json canary = json::Json::parse(http_engine.last_canary());
  CHECK(canary["model"] == "demo");
  CHECK(canary["max_tokens"] >= 1);  // Of the first token, or of the answer kept for wakes.
  CHECK(canary["temperature"] == 0);

  const auto report = fake_operator.Last("demo-0");
  REQUIRE(report->timeline.has_value());  // Decoding has checked that the phases partition it.
  const Timeline& timeline = *report->timeline;
  CHECK(timeline.decided_at_us == decided);
  REQUIRE(timeline.phases.size() == 12);
  CHECK(timeline.phases[0].name == "Schedule");
  CHECK(timeline.phases[0].end_us >= 1'000'000);
  CHECK(timeline.total_us >= timeline.phases[0].end_us);
  REQUIRE(fake_operator.WaitFor("demo-0", [](const AgentReport& latest) {
    return latest.timeline && latest.timeline->lanes.size() == 1 &&
           latest.timeline->lanes[0].name == "Digest";
  }));

  SECTION("an engine that stops answering is not ready any more, and is again later") {
    http_engine.SetHealthy(false);
    REQUIRE(fake_operator.WaitForState("demo-0", AgentState::kWarming));
    CHECK(Get(address, "/readyz").status == 503);
    CHECK(fake_operator.Last("demo-0")->message.find("stopped answering") != std::string::npos);
    // Its container is started again: it says Hello anew and takes its weights from the agent.
    auto engine = FakeEngine::Connect(agent.socket());
    CHECK(engine->Hello(TestIdentity())->body["source"] == "Peer");
    REQUIRE(fake_operator.WaitForState("demo-0", AgentState::kLoading));
    http_engine.SetHealthy(true);
    REQUIRE(fake_operator.WaitForState("demo-0", AgentState::kServing));
    CHECK(fake_operator.Last("demo-0")->timeline->total_us == timeline.total_us);
  }
}

TEST_CASE(
    "An agent that is started again keeps its pod's timeline, and replaces its stale socket") {
  FakeOperator fake_operator;
  FakeEngineHttp http_engine;
  http_engine.SetHealthy(true);
  const std::map<std::string, std::string> environment = {
      {"ROUSE_ENGINE_URL", http_engine.url()},
      {"ROUSE_SERVED_MODEL", "demo"},
      {"ROUSE_DECIDED_AT_US", std::to_string(Now() - 1'000'000)}};
  AgentProcess first("demo-0", fake_operator.url(), environment);
  REQUIRE(fake_operator.WaitForState("demo-0", AgentState::kServing));
  const auto timeline = fake_operator.Last("demo-0")->timeline;
  REQUIRE(timeline.has_value());
  first.Signal(SIGKILL);
  REQUIRE(first.Wait() == 128 + SIGKILL);
  std::map<std::string, std::string> again = environment;
  again["ROUSE_ENGINE_SOCKET"] = first.socket();
  AgentProcess second("demo-1", fake_operator.url(), again);
  REQUIRE(fake_operator.WaitForState("demo-1", AgentState::kServing));
  CHECK(fake_operator.Last("demo-1")->timeline == timeline);
  CHECK(FakeEngine::Connect(first.socket())->Hello(TestIdentity())->type() == "Welcome");
}

TEST_CASE("Bad requests on the HTTP port are answered with the fitting error") {
  FakeOperator fake_operator;
  AgentProcess agent("demo-0", fake_operator.url(), {});
  REQUIRE(fake_operator.WaitForState("demo-0", AgentState::kReady));
  const std::string address = fake_operator.Last("demo-0")->address;
  auto client = http::Client::Create(address);
  REQUIRE(client.ok());
  const std::string open = R"({"protocol":"rouse-weights","version":1,"launchIdentity":"launch-1",)"
                           R"("requester":"default/x"})";
  struct Case {
    std::string method, target, body;
    int status;
  };
  const Case cases[] = {{"GET", "/", "", 404},
                        {"GET", "/v1/files/../../etc/passwd", "", 404},
                        {"GET", "/v1/files/" + std::string(64, 'a'), "", 404},
                        {"POST", "/metrics", "", 405},
                        {"GET", "/v1/weights/open", "", 405},
                        {"DELETE", "/v1/files", "", 405},
                        {"POST", "/v1/weights/steal", "{}", 404},
                        {"POST", "/v1/weights/open", "", 400},
                        {"POST", "/v1/weights/open", "[[[[", 400},
                        {"POST", "/v1/weights/open", std::string(100'000, '['), 400},
                        {"POST", "/v1/weights/open", "{}", 400},
                        {"POST", "/v1/weights/open", open, 503},
                        {"POST", "/v1/weights/open", std::string(5 << 20, ' '), 413},
                        {"POST", "/v1/weights/renew",
                         R"({"protocol":"rouse-weights","version":1,"lease":"none"})", 404},
                        {"POST", "/v1/weights/close",
                         R"({"protocol":"rouse-weights","version":1,"lease":"none"})", 404}};
  for (const Case& one : cases) {
    const auto answer = (*client)->Send({.method = one.method,
                                         .target = one.target,
                                         .headers = {{"Content-Type", "application/json"}},
                                         .body = one.body});
    INFO(one.method << " " << one.target << " " << one.body.substr(0, 80) << " -> "
                    << (answer.ok() ? answer->body : answer.status().ToString()));
    REQUIRE(answer.ok());
    CHECK(answer->status == one.status);
    CHECK_FALSE(http::ToStatus(*answer, "x").ok());
  }
  CHECK(Get(address, "/healthz").status == 200);
}

TEST_CASE("The agent works on while the operator is away, and reports when it is back") {
  FakeOperator fake_operator;
  fake_operator.SetAway(true);
  AgentProcess agent("demo-0", fake_operator.url(), {});
  auto engine = FakeEngine::Connect(agent.socket());
  REQUIRE(engine.ok());
  REQUIRE(engine->Hello(TestIdentity())->type() == "Welcome");
  REQUIRE(engine->CreateFillPublish(TestIdentity(), 0, TestBytes(kLifeArenaBytes, 2))->type() ==
          "Ok");
  CHECK(fake_operator.reports("demo-0") == 0);
  fake_operator.SetAway(false);
  CHECK(fake_operator.WaitForServable("demo-0"));
}

TEST_CASE("SIGTERM ends the agent cleanly: socket and leases are gone") {
  FakeOperator fake_operator;
  AgentProcess source("demo-0", fake_operator.url(), {{"ROUSE_DRAIN_SECONDS", "1"}});
  auto engine = FakeEngine::Connect(source.socket());
  REQUIRE(engine->Hello(TestIdentity())->type() == "Welcome");
  REQUIRE(engine->CreateFillPublish(TestIdentity(), 0, TestBytes(kLifeArenaBytes, 3))->type() ==
          "Ok");
  REQUIRE(fake_operator.WaitForServable("demo-0"));
  const std::string address = fake_operator.Last("demo-0")->address;
  AgentProcess target("demo-1", fake_operator.url(), {{"ROUSE_PATH", "Peer"}});
  REQUIRE(fake_operator.WaitForServable("demo-1"));
  const auto closed = [&] {
    return Get(address, "/metrics").body.find("rouse_leases_open 0") != std::string::npos;
  };
  for (int i = 0; i < 100 && !closed(); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  CHECK(closed());
  REQUIRE(std::filesystem::exists(source.socket()));
  for (AgentProcess* agent : {&source, &target}) {
    agent->Signal(SIGTERM);
    const auto status = agent->Wait();
    INFO(agent->log());
    CHECK(status == 0);
    CHECK_FALSE(std::filesystem::exists(agent->socket()));
  }
}

TEST_CASE("SIGTERM ends an agent that still looks for a peer") {
  FakeOperator fake_operator;
  AgentProcess agent("demo-0", fake_operator.url(), {{"ROUSE_PATH", "Peer"}});
  REQUIRE(fake_operator.WaitForState("demo-0", AgentState::kPulling));
  CHECK(Get(fake_operator.Last("demo-0")->address, "/startupz").status == 503);
  agent.Signal(SIGTERM);
  CHECK(agent.Wait() == 0);
}

TEST_CASE("An engine's load is reported, and that it appears at once") {
  FakeOperator fake_operator;
  FakeEngineHttp http_engine;
  http_engine.SetHealthy(true);
  AgentProcess agent("demo-0", fake_operator.url(),
                     {{"ROUSE_ENGINE_URL", http_engine.url()}, {"ROUSE_SERVED_MODEL", "demo"}});
  Load(agent, TestBytes(kLifeArenaBytes, 4));
  REQUIRE(fake_operator.WaitForState("demo-0", AgentState::kServing));
  const auto is = [](std::uint64_t running) {
    return [=](const AgentReport& report) {
      return report.load == EngineLoad{.running = running, .waiting = 0};
    };
  };
  fake_operator.SetReportAfter(std::chrono::minutes(10));
  REQUIRE(fake_operator.WaitFor("demo-0", is(0)));
  std::this_thread::sleep_for(std::chrono::seconds(1));  // The last that came by themselves.
  const int before = fake_operator.reports("demo-0");
  http_engine.SetRequests(7);
  CHECK(fake_operator.WaitFor("demo-0", is(7)));
  http_engine.SetRequests(0);
  CHECK(fake_operator.WaitFor("demo-0", is(0)));
  CHECK(fake_operator.reports("demo-0") == before + 2);
  // An engine that is not well tells nothing that could be believed.
  http_engine.SetRequests(5);
  http_engine.SetHealthy(false);
  REQUIRE(fake_operator.WaitFor(
      "demo-0", [](const AgentReport& report) { return report.state != AgentState::kServing; }));
  CHECK_FALSE(fake_operator.Last("demo-0")->load);
}

TEST_CASE("Metrics have valid names and help by promtool's rules") {
  FakeOperator fake_operator;
  FakeEngineHttp http_engine;
  http_engine.SetHealthy(true);
  AgentProcess source("demo-0", fake_operator.url(), {});
  Load(source, TestBytes(kLifeArenaBytes, 4));
  REQUIRE(fake_operator.WaitForServable("demo-0"));
  AgentProcess target("demo-1", fake_operator.url(),
                      {{"ROUSE_PATH", "Peer"},
                       {"ROUSE_ENGINE_URL", http_engine.url()},
                       {"ROUSE_SERVED_MODEL", "demo"}});
  REQUIRE(fake_operator.WaitForState("demo-1", AgentState::kServing));
  REQUIRE(fake_operator.WaitForServable("demo-1"));
  auto engine = FakeEngine::Connect(target.socket());
  REQUIRE(engine->Send("nonsense").ok());
  REQUIRE(engine->Receive()->type() == "Error");
  const std::string text = Get(fake_operator.Last("demo-1")->address, "/metrics").body;
  for (const std::string name :
       {"rouse_agent_state{state=\"Serving\"} 1", "rouse_pull_bytes_total{transport=\"tcp",
        "rouse_pull_seconds_count{outcome=\"success\"} 1",
        "rouse_pull_transport_seconds_total{transport=\"tcp", "rouse_digest_mismatch_total 0",
        "rouse_weights_bytes{role=\"pulled\"} 5242880", "rouse_leases_open 0", "rouse_leases_total",
        "rouse_engine_requests_total{outcome=\"error\",type=\"Invalid\"} 1", "rouse_reports_total",
        "rouse_phase_seconds{path=\"Peer\",phase=\"FirstToken\"}",
        "rouse_start_seconds{path=\"Peer\"}"}) {
    INFO(name << " in\n" << text);
    CHECK(text.find(name) != std::string::npos);
  }
  const TempFolder folder;
  folder.Write("metrics.txt", text);
  const std::string command = "promtool check metrics < " + folder.path() + "/metrics.txt 2>&1";
  FILE* const checked = ::popen(command.c_str(), "r");
  REQUIRE(checked != nullptr);
  std::string said;
  for (char part[256]; std::fgets(part, sizeof part, checked) != nullptr;) said += part;
  const int status = ::pclose(checked);
  INFO(said);
  CHECK(status == 0);
  CHECK(said.empty());
}

TEST_CASE("Contradicting flags are refused with the flag named") {
  for (const auto& [name, value, said] :
       {std::tuple{"ROUSE_PATH", "Wake", "--path Wake"},
        std::tuple{"ROUSE_PATH", "Sideways", "--path"},
        std::tuple{"ROUSE_SLAB_MIB", "0", "--slab-mib"},
        std::tuple{"ROUSE_ENGINE_URL", "http://127.0.0.1:1", "--served-model"},
        std::tuple{"ROUSE_NCCL_LIBRARY", "libnccl.so.2", "--node-folder"}}) {
    AgentProcess agent("demo-0", "http://127.0.0.1:1", {{name, value}});
    const auto status = agent.Wait();
    REQUIRE(status.has_value());
    CHECK(*status != 0);
    INFO(agent.log());
    CHECK(agent.log().find(said) != std::string::npos);
  }
}
