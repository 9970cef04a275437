// Compile caches from one agent to the next: real agents, real HTTP, an engine whose caches are
// files.

#include <signal.h>

#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>
#include <thread>

#include "agent/state/state_messages.h"
#include "agent/tests/agent_process.h"
#include "agent/tests/fake_engine.h"
#include "agent/tests/fake_operator.h"
#include "agent/tests/state_fixture.h"

using namespace rouse;
using namespace rouse::agent;

namespace fs = std::filesystem;

namespace {

/// One pod's folders, and the agent over them.
struct Pod {
  Pod(FakeOperator& fake_operator, const std::string& name,
      std::map<std::string, std::string> environment = {})
      : name_(name), operator_(fake_operator) {
    fs::create_directories(state());
    environment.insert({{"ROUSE_STATE_DIR", state()},
                        {"ROUSE_STATE_STORE", folder.path() + "/store"},
                        {"ROUSE_ENGINE_IDENTITY", "engine-1"},
                        {"ROUSE_ENGINE_URL", engine.url()},
                        {"ROUSE_SERVED_MODEL", "demo"}});
    agent = std::make_unique<AgentProcess>(name, fake_operator.url(), environment);
  }

  std::string state() const { return folder.path() + "/state"; }
  AgentReport Report() const { return operator_.Last(name_).value_or(AgentReport()); }
  bool WaitForReady() const { return operator_.WaitForState(name_, AgentState::kReady); }
  /// What the engine does next: it compiles, and serves.
  void Serve(const std::string& seed = "") {
    WriteCaches(state(), seed);
    engine.SetHealthy(true);
  }
  http::Response Get(const std::string& target) const {
    auto client = http::Client::Create(Report().address);
    auto answer = (*client)->Send({.target = target});
    REQUIRE(answer.ok());
    return *answer;
  }
  bool WaitForLog(const std::string& text) const {
    return Eventually([&] { return agent->log().find(text) != std::string::npos; });
  }
  bool WaitForPublished() const {
    return Eventually([&] {
      const std::string metrics = Get("/metrics").body;
      return metrics.find("{class=\"Matched\",outcome=\"published\"} 1") != std::string::npos &&
             metrics.find("{class=\"Reusable\",outcome=\"published\"} 1") != std::string::npos;
    });
  }

  TempFolder folder;
  FakeEngineHttp engine;
  std::unique_ptr<AgentProcess> agent;

 private:
  std::string name_;
  FakeOperator& operator_;
};

json::Json CacheUse(const json::Json& lookups) {
  return {{"type", "CacheUse"},
          {"protocol", "rouse-engine"},
          {"version", 1},
          {"rank", 0},
          {"lookups", lookups}};
}

}  // namespace

TEST_CASE("What one instance has compiled is in place before the next one's engine may start") {
  FakeOperator fake_operator;
  Pod first(fake_operator, "demo-0");
  REQUIRE(first.WaitForReady());
  CHECK(first.Report().state_origin == "none: no other instance runs");
  first.Serve();
  REQUIRE(first.WaitForPublished());

  Pod second(fake_operator, "demo-1");
  REQUIRE(second.WaitForReady());
  CHECK(second.Report().state_origin == "from demo-0");
  const auto tree = TreeOf(second.state());
  CHECK(tree.at("triton/XYZ/kernel.cubin") == std::string(100'000, 'k'));
  CHECK(tree.at("vllm/modelinfos/qwen3.json") == "{}");
  CHECK(tree.at("inductor/ab/link.py") == "-> cab.py");
  CHECK_FALSE(tree.contains("vllm/assets/picture.png"));
  CHECK_FALSE(
      tree.contains("vllm/torch_compile_cache/0123456789/rank_0_0/backbone/"
                    "cache_key_factors.json"));
  CHECK(second.Get("/metrics").body.find("{class=\"Matched\",outcome=\"installed\"} 1") !=
        std::string::npos);

  // The first one is gone: the second hands it on, although its engine has not started.
  first.agent.reset();
  fake_operator.Forget("demo-0");
  Pod third(fake_operator, "demo-2");
  REQUIRE(third.WaitForReady());
  CHECK(third.Report().state_origin == "from demo-1");
  CHECK(TreeOf(third.state()) == tree);
}

TEST_CASE("Of three that start together one compiles, and who comes later waits for it") {
  FakeOperator fake_operator;
  for (const char* pod : {"demo-0", "demo-1", "demo-2"}) fake_operator.SetDecided(pod, 7);
  const std::map<std::string, std::string> decided = {{"ROUSE_DECIDED_AT_US", "7"}};
  Pod first(fake_operator, "demo-0", decided);
  Pod second(fake_operator, "demo-1", decided);
  Pod third(fake_operator, "demo-2", decided);
  // Whoever is heard of first is the one, and it does not wait for those who wait for it. Those who
  // asked before the others had reported know of nobody, and compile too.
  Pod* compiling = nullptr;
  REQUIRE(Eventually([&] {
    for (Pod* pod : {&first, &second, &third}) {
      if (pod->Report().state == AgentState::kReady) compiling = pod;
    }
    return compiling != nullptr;
  }));
  Pod late(fake_operator, "demo-3", {{"ROUSE_DECIDED_AT_US", "9"}});
  REQUIRE(Eventually([&] { return late.Report().state == AgentState::kHydrating; }));
  CHECK(late.Report().message == "waiting for compile caches");
  CHECK(late.Get("/startupz").status == 503);
  compiling->Serve();
  REQUIRE(late.WaitForReady());
  CHECK(late.Report().state_origin.starts_with("from demo-"));
  CHECK(TreeOf(late.state()).contains("triton/XYZ/kernel.cubin"));
}

TEST_CASE("After the deadline the engine starts without, and says why") {
  FakeOperator fake_operator;
  Pod first(fake_operator, "demo-0");
  REQUIRE(first.WaitForReady());
  Pod second(fake_operator, "demo-1",
             {{"ROUSE_STATE_DEADLINE_SECONDS", "1"}, {"ROUSE_DECIDED_AT_US", "9"}});
  REQUIRE(second.WaitForReady());
  CHECK(second.Report().state_origin == "none: demo-0 has not got them ready within 1 s");
  // With none, nobody is waited for.
  Pod third(fake_operator, "demo-2",
            {{"ROUSE_STATE_DEADLINE_SECONDS", "0"}, {"ROUSE_DECIDED_AT_US", "9"}});
  REQUIRE(third.WaitForReady());
}

TEST_CASE("Where caches are required an instance without them fails, but not the first one") {
  FakeOperator fake_operator;
  Pod first(fake_operator, "demo-0", {{"ROUSE_STATE_REQUIRED", "true"}});
  REQUIRE(first.WaitForReady());
  Pod second(fake_operator, "demo-1",
             {{"ROUSE_STATE_REQUIRED", "true"}, {"ROUSE_STATE_DEADLINE_SECONDS", "1"}});
  REQUIRE(fake_operator.WaitForState("demo-1", AgentState::kFailed));
  CHECK(second.Report().message.find("no compile caches to install") != std::string::npos);
}

TEST_CASE(
    "A miss on installed caches is reported with what differed, one on none is counted only") {
  FakeOperator fake_operator;
  const json::Json lookups = json::Json::parse(R"([
    {"cache": "aot_compile", "hits": 0, "misses": 1, "where": "/rouse/state/vllm/x",
     "reason": "1 parts of the key differ from the nearest cache", "factors": ["env.VLLM_PLUGINS"]},
    {"cache": "fx_graph", "hits": 4, "misses": 0, "where": "", "reason": "", "factors": []}])");
  Pod first(fake_operator, "demo-0");
  REQUIRE(first.WaitForReady());
  auto engine = FakeEngine::Connect(first.agent->socket());
  REQUIRE(engine->Ask(CacheUse(lookups))->type() == "Ok");
  first.Serve();
  REQUIRE(first.WaitForPublished());
  CHECK(first.Report().state_miss.empty());
  std::string metrics = first.Get("/metrics").body;
  CHECK(metrics.find("rouse_cache_lookups_total{cache=\"aot_compile\",result=\"miss\"} 1") !=
        std::string::npos);
  CHECK(metrics.find("rouse_cache_lookups_total{cache=\"fx_graph\",result=\"hit\"} 4") !=
        std::string::npos);
  CHECK(metrics.find("rouse_cache_installed_misses_total") == std::string::npos);

  Pod second(fake_operator, "demo-1");
  REQUIRE(second.WaitForReady());
  auto other = FakeEngine::Connect(second.agent->socket());
  REQUIRE(other->Ask(CacheUse(lookups))->type() == "Ok");
  REQUIRE(Eventually([&] { return !second.Report().state_miss.empty(); }));
  CHECK(second.Report().state_miss ==
        "aot_compile missed at /rouse/state/vllm/x: 1 parts of the key differ from the nearest "
        "cache; what differs from the installed caches: env.VLLM_PLUGINS");
  metrics = second.Get("/metrics").body;
  CHECK(
      metrics.find("rouse_cache_installed_misses_total{cache=\"aot_compile\",factor=\"env\"} 1") !=
      std::string::npos);
  // The engine is started again, and finds all.
  json::Json hits = lookups;
  hits[0]["hits"] = 1;
  hits[0]["misses"] = 0;
  auto anew = FakeEngine::Connect(second.agent->socket());
  REQUIRE(anew->Ask(CacheUse(hits))->type() == "Ok");
  CHECK(Eventually([&] { return second.Report().state_miss.empty(); }));
}

TEST_CASE("A report of lookups that is malformed is refused, and the agent lives") {
  FakeOperator fake_operator;
  Pod pod(fake_operator, "demo-0");
  REQUIRE(pod.WaitForReady());
  json::Json good = json::Json::parse(
      R"([{"cache": "triton", "hits": 1, "misses": 0, "where": "", "reason": "", "factors": []}])");
  for (const auto& [key, value] :
       std::map<std::string, json::Json>{{"cache", "my_cache"},
                                         {"hits", -1},
                                         {"misses", 1e300},
                                         {"where", std::string(3'000, 'x')},
                                         {"factors", json::Json(std::vector<std::string>(99, "x"))},
                                         {"more", 1}}) {
    json::Json bad = good;
    bad[0][key] = value;
    auto engine = FakeEngine::Connect(pod.agent->socket());
    INFO(key);
    CHECK(engine->Ask(CacheUse(bad))->type() == "Error");
  }
  json::Json many = json::Json::array();
  for (int i = 0; i < 65; ++i) many.push_back(good[0]);
  auto engine = FakeEngine::Connect(pod.agent->socket());
  CHECK(engine->Ask(CacheUse(many))->type() == "Error");
  CHECK(pod.Get("/healthz").status == 200);
}

TEST_CASE("Hostile bundles of a peer are refused; the engine starts without, nothing is written") {
  FakeOperator fake_operator;
  json::Json served;
  std::mutex mutex;
  const auto answer = [&](const http::Request& request) {
    const std::scoped_lock lock(mutex);
    if (request.target == "/v1/state/read") {
      return http::Response{.status = 200, .headers = {}, .body = "compiled{}"};
    }
    json::Json out = {{"protocol", "rouse-state"},
                      {"version", 1},
                      {"standing", "Held"},
                      {"decidedAtUs", 1},
                      {"bundle", served}};
    out["bundle"]["fingerprint"] = request.target.substr(request.target.rfind('/') + 1);
    out["bundle"]["class"] =
        request.target.find("Matched") != std::string::npos ? "Matched" : "Reusable";
    return http::JsonResponse(json::Dump(out));
  };
  auto peer = http::Server::Listen("127.0.0.1", 0, answer);
  REQUIRE(peer.ok());
  fake_operator.AddSibling({.pod = "evil-0",
                            .address = "http://127.0.0.1:" + std::to_string((*peer)->port()),
                            .decided_at_us = 1});
  const auto hostile = HostileBundles();
  // One of each kind: the decoder is tested with all of them.
  for (const char* what : {"path \"../outside\"", "link to \"/etc/passwd\"", "a device", "setuid",
                           "a file below a link", "wrong bytes"}) {
    json::Json bundle = ToJson(GoodBundle());
    for (const HostileBundle& one : hostile) {
      if (one.what == what) one.change(bundle);
    }
    if (std::string(what) == "wrong bytes") bundle["entries"][0]["sha256"] = std::string(64, 'a');
    {
      const std::scoped_lock lock(mutex);
      served = bundle;
    }
    static int number = 0;
    Pod pod(fake_operator, "demo-" + std::to_string(number++),
            {{"ROUSE_STATE_DEADLINE_SECONDS", "0"}});
    INFO(what);
    REQUIRE(pod.WaitForReady());
    CHECK(pod.Report().state_origin.starts_with("none: "));
    CHECK(pod.Report().state_origin.find("evil-0") != std::string::npos);
    CHECK(TreeOf(pod.state()).empty());
    CHECK_FALSE(fs::exists(pod.folder.path() + "/outside"));
  }
}

TEST_CASE("An agent that is started again hands on what its store has, and installs nothing") {
  FakeOperator fake_operator;
  Pod first(fake_operator, "demo-0");
  REQUIRE(first.WaitForReady());
  first.Serve();
  REQUIRE(first.WaitForPublished());
  // Another agent on the same store, whose own state folder is empty, as another pod of the node.
  Pod second(fake_operator, "demo-1", {{"ROUSE_STATE_STORE", first.folder.path() + "/store"}});
  REQUIRE(second.WaitForReady());
  CHECK(second.Report().state_origin == "from this node's store");
  CHECK(TreeOf(second.state()).contains("triton/XYZ/kernel.cubin"));
  CHECK(second.Get("/metrics").body.find("rouse_state_fetched_bytes_total 0") != std::string::npos);
}

TEST_CASE("Agents of another launch keep copies, and who starts later finds them there") {
  FakeOperator fake_operator;
  fake_operator.NameKeepers(2);
  const std::map<std::string, std::string> other = {{"ROUSE_LAUNCH_IDENTITY", "launch-2"},
                                                    {"ROUSE_ENGINE_IDENTITY", "engine-2"}};
  for (const char* pod : {"other-0", "other-1", "other-2"}) fake_operator.Separate(pod);
  Pod first_keeper(fake_operator, "other-0", other);
  REQUIRE(first_keeper.WaitForReady());
  // It waits for the first one's engine, and keeps copies meanwhile.
  Pod second_keeper(fake_operator, "other-1", other);
  REQUIRE(Eventually([&] { return !second_keeper.Report().address.empty(); }));
  const auto keeps = [](const Pod& pod, int bundles) {
    return pod.Get("/metrics")
               .body.find("\nrouse_state_kept_bundles " + std::to_string(bundles) + "\n") !=
           std::string::npos;
  };
  {
    Pod first(fake_operator, "demo-0");
    REQUIRE(first.WaitForReady());
    first.Serve();
    REQUIRE(first.WaitForPublished());
    // Of three agents two are places of each of the two bundles, demo-0 may be one of them.
    REQUIRE(Eventually([&] {
      return keeps(first_keeper, 2) || keeps(second_keeper, 2) ||
             (keeps(first_keeper, 1) && keeps(second_keeper, 1));
    }));
    CHECK(keeps(first, 0));
    first.agent->Signal(SIGTERM);
    CHECK(first.agent->Wait() == 0);
    fake_operator.Forget("demo-0");
  }
  // Now both others are.
  REQUIRE(Eventually([&] { return keeps(first_keeper, 2) && keeps(second_keeper, 2); }));
  Pod later(fake_operator, "demo-1");
  REQUIRE(later.WaitForReady());
  CHECK(later.Report().state_origin.starts_with("from other-"));
  CHECK(TreeOf(later.state()).at("triton/XYZ/kernel.cubin") == std::string(100'000, 'k'));
  CHECK(later.Get("/metrics")
            .body.find("rouse_state_lookups_total{class=\"Matched\",found=\"keeper\"} 1") !=
        std::string::npos);

  // An agent that is started again knows what it keeps.
  fake_operator.NameKeepers(0);
  const std::string address = first_keeper.Report().address;
  first_keeper.agent->Signal(SIGKILL);
  auto again = other;
  again["ROUSE_STATE_STORE"] = first_keeper.folder.path() + "/store";
  Pod restarted(fake_operator, "other-0", again);
  REQUIRE(Eventually([&] { return restarted.Report().address != address; }));
  CHECK(Eventually([&] { return keeps(restarted, 2); }));
}
