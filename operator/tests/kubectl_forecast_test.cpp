#include <catch2/catch.hpp>

#include "operator/kubectl/forecast.h"
#include "operator/tests/kubectl_world.h"

using namespace rouse;
using namespace rouse::kubectl;
using namespace rouse::kubectl::testing;
using plan::testing::State;

namespace {

std::string TextAt(plan::Observed observed, int replicas) {
  return "\n" + ForecastText(MakeForecast(std::move(observed), replicas, kNow), kPlain);
}

}  // namespace

TEST_CASE("a guard wakes, the others pull, and the guard is made anew", "[kubectl]") {
  State state(1, true);
  state.Guards(1).Serving("demo-0").Guard("demo-1", "node-a");
  state.Done().service.status.scale_outs = {{.pod = "demo-0",
                                             .uid = "uid-demo-0",
                                             .path = "Storage",
                                             .reason = "",
                                             .seconds = 3.5,
                                             .phases = {},
                                             .bytes_by_source = {},
                                             .finished_at = kNow}};
  CHECK(TextAt(state.Done(), 3) == R"(
default/demo at 3 replicas (now 1), as the operator would decide it; nothing is changed
  at once
    wake demo-1 (this guard slept; weights of demo-0 (Node))
    create demo-2 by Peer (Wake: no other guards)
  once that is done
    create guard demo-3 by Peer (Wake: a guard is to be made)
    demo-1 may serve
  once that is done
    put demo-3 to sleep
then 3 of 3 instances serve, 1 guard sleeps
to the first token, the last time: Storage 3.50 s
assumed: every start succeeds and finds a node; times are the operator's defaults
)");
}

TEST_CASE("from nothing, one loads from storage and the others wait for it", "[kubectl]") {
  State state(0, true);
  CHECK(TextAt(state.Done(), 3) == R"(
default/demo at 3 replicas (now 0), as the operator would decide it; nothing is changed
  at once
    create demo-0 by Storage (Wake: no guards; Peer: no other instance runs)
  once that is done
    create demo-1 by Peer (Wake: no guards)
    create demo-2 by Peer (Wake: no guards)
then 3 of 3 instances serve
assumed: every start succeeds and finds a node; times are the operator's defaults
)");
}

TEST_CASE("who leaves is taken out of service first", "[kubectl]") {
  State state(2, true);
  state.Serving("demo-0", "node-a", std::chrono::seconds(900)).Serving("demo-1");
  const Forecast forecast = MakeForecast(state.Done(), 1, kNow);
  REQUIRE(forecast.steps.size() == 2);
  CHECK(plan::KindOf(forecast.steps[0].actions[0]) == "Leave");
  CHECK(plan::KindOf(forecast.steps[1].actions[0]) == "DeleteInstance");
  CHECK(forecast.settles);
  CHECK(forecast.end.ready == 1);
}

TEST_CASE("the number that is there already is nothing to do", "[kubectl]") {
  State state(1, true);
  state.Serving("demo-0");
  CHECK(TextAt(state.Done(), 1).find("\n  nothing to do\nthen 1 of 1 instance serves\n") !=
        std::string::npos);
}

TEST_CASE("a wait of the operator's is told, and a change of the spec ends it", "[kubectl]") {
  State state(2, true);
  state.Serving("demo-0");
  api::ServiceStatus& status = state.Done().service.status;
  status.consecutive_failures = 3;
  status.last_failure = kNow - std::chrono::seconds(5);
  CHECK(TextAt(state.Done(), 2).find("  after 15 s\n    create demo-1 by Peer") !=
        std::string::npos);
  CHECK(TextAt(state.Done(), 3).find("  at once\n    create demo-1 by Peer") != std::string::npos);
}

TEST_CASE("whoever crash-loops is not taken to come up, and is replaced at the deadline",
          "[kubectl]") {
  State state(2, true);
  state.Serving("demo-0").Starting("demo-1");
  state["demo-1"].crash_looping = "engine: exit code 1";
  state["demo-1"].restarts = 1;
  const Forecast forecast = MakeForecast(state.Done(), 2, kNow);
  REQUIRE(forecast.steps.size() == 1);
  CHECK(forecast.steps[0].wait > std::chrono::minutes(55));
  CHECK(plan::ToString(forecast.steps[0].actions[0]).starts_with("delete demo-1 (Failed: "));
  CHECK(forecast.end.ready == 2);
}

TEST_CASE("a forecast ends, whatever the state, and with as many as were asked for", "[kubectl]") {
  for (int replicas = 0; replicas <= 6; ++replicas) {
    for (int guards = 0; guards <= 2; ++guards) {
      State state(2, true);
      state.Guards(guards).Serving("demo-0").Starting("demo-1").Guard("demo-2");
      state["demo-0"].revision = "an older one";
      const Forecast forecast = MakeForecast(state.Done(), replicas, kNow);
      INFO(replicas << " replicas, " << guards << " guards");
      CHECK(forecast.settles);
      CHECK(forecast.end.ready == replicas);
      // A guard needs weights to come up and none has them any more when nobody serves.
      if (replicas > 0) CHECK(forecast.end.guards == guards);
    }
  }
}

TEST_CASE("a forecast's JSON names each action's kind and pod", "[kubectl]") {
  State state(0, true);
  const Json out = ToJson(MakeForecast(state.Done(), 1, kNow));
  CHECK(out["steps"][0]["actions"][0]["kind"] == "CreateInstance");
  CHECK(out["steps"][0]["actions"][0]["pod"] == "demo-0");
  CHECK(out["settles"] == true);
  CHECK(out["ready"] == 1);
}
