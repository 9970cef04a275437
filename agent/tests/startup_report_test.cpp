#include <catch2/catch.hpp>

#include "agent/startup/report.h"

using namespace rouse;
using namespace rouse::agent;
using namespace std::chrono_literals;

TEST_CASE("A report says who, in which state, with which weights, and passes the strict decoder") {
  const AgentIdentity self{.pod_namespace = "default",
                           .pod = "demo-0",
                           .pod_uid = "u",
                           .node = "n",
                           .address = "http://10.0.0.1:7410"};
  StartupMachine machine(
      {.path = StartPath::kStorage, .decided_at_us = 100, .agent_started_us = 200});
  machine.Apply(event::Begun{});
  machine.Apply(event::EngineHealthy{300});
  machine.Apply(event::FirstToken{400});
  Holdings holdings;
  holdings.weights = WeightsReport{
      .form = WeightForm::kLoaded, .identity = "abc", .bytes = 7, .ranks = 1, .servable = true};
  holdings.bytes_by_source = {.peer = 0, .storage = 7};
  holdings.transport = "tcp/eth0";
  holdings.transport_fallback = "this node has mlx5_0:1";
  holdings.state_origin = "from demo-1";
  holdings.state_miss = "fx_graph missed";
  holdings.load = EngineLoad{.running = 1, .waiting = 2};
  const AgentReport report = BuildReport(self, StandingOf(machine, {}, false), holdings);
  CHECK(report.state == AgentState::kServing);
  CHECK(report.timeline->total_us == 300);
  CHECK(report.transport_fallback == "this node has mlx5_0:1");
  CHECK(report.state_origin == "from demo-1");
  CHECK(report.state_miss == "fx_graph missed");
  CHECK(report.load == holdings.load);
  const auto decoded = AgentReportFromJson(ToJson(report));
  REQUIRE(decoded.ok());
  CHECK(*decoded == report);

  machine.Apply(event::EngineUnhealthy{"it hangs"});
  CHECK_FALSE(BuildReport(self, StandingOf(machine, {}, false), holdings).load);
}

TEST_CASE("A message of any length is one that the operator takes") {
  StartupMachine machine({});
  machine.Apply(event::Failure{std::string(100'000, 'x')});
  const AgentReport report =
      BuildReport({"ns", "p", "u", "n", "http://a"}, StandingOf(machine, {}, false), {});
  CHECK(AgentReportFromJson(ToJson(report)).ok());
}

TEST_CASE(
    "an answer that leaves out who keeps caches means those of the one before, if it says so") {
  const Assignment before{.keepers = {{.pod = "a"}}, .keepers_digest = "1"};
  const auto after = [&](Assignment answer) {
    KeepKnown(answer, before);
    return answer.keepers;
  };
  CHECK(after({.keepers_digest = "1"}) == before.keepers);
  CHECK(after({}).empty());  // Nobody keeps any.
  CHECK(after({.keepers_digest = "2"}).empty());
  const std::vector<Keeper> others = {{.pod = "b"}};
  CHECK(after({.keepers = others, .keepers_digest = "1"}) == others);
  CHECK(after({.keepers = others}) == others);  // An older operator.
}

TEST_CASE("Reports pause longer with each failure, with jitter, and not for ever") {
  CHECK(NextReport(0, 2000ms, 0.7) == 2000ms);
  CHECK(NextReport(1, 2000ms, 0.0) == 100ms);
  CHECK(NextReport(1, 2000ms, 1.0) == 200ms);
  CHECK(NextReport(3, 2000ms, 1.0) == 800ms);
  CHECK(NextReport(1000, 2000ms, 1.0) == 10s);
  CHECK(NextReport(1000, 2000ms, 0.0) == 5s);
}
