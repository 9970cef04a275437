#include "operator/plan/load.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <map>
#include <random>

#include "operator/tests/seeds.h"
#include "operator/tests/state.h"

using namespace rouse;
using namespace rouse::plan;
using namespace rouse::plan::testing;
using namespace std::chrono_literals;

namespace {

const LoadTime kThen = LoadTime(1h);

using Told = std::map<std::string, ToldLoad>;  // by pod

ToldLoad Say(std::uint64_t running, std::uint64_t waiting, LoadTime at = kThen) {
  return {
      .load = EngineLoad{.running = running, .waiting = waiting}, .at = at, .kept = LoadKept(2)};
}

ServiceLoad Look(State& state, const Told& told, LoadTime now = kThen) {
  std::vector<std::shared_ptr<const Instance>> pods;
  for (const Instance& i : state.Done().instances) {
    pods.push_back(std::make_shared<const Instance>(i));
  }
  return LoadOf(
      state.Done().service, pods,
      [&](const std::string& uid) -> std::optional<ToldLoad> {
        const auto it = told.find(uid.substr(4));  // "uid-NAME"
        return it == told.end() ? std::nullopt : std::optional(it->second);
      },
      now);
}

std::string WhyNoTotal(const ServiceLoad& load) {
  const auto total = TotalLoad(load);
  REQUIRE_FALSE(total.ok());
  CHECK(total.status().code() == StatusCode::kUnavailable);
  return total.status().message();
}

}  // namespace

TEST_CASE("the load is what replicas that serve run and let wait, and of nobody else") {
  State state(4);
  state.Serving("demo-0").Serving("demo-1").Starting("demo-2").Guard("demo-3");
  // A guard that was claimed, one that is leaving, one that is going, one that is not ready.
  for (const char* name : {"demo-4", "demo-5", "demo-6", "demo-7", "demo-8"}) state.Serving(name);
  state["demo-4"].agent_state = AgentState::kWaking;
  state["demo-5"].leaving = Leaving{};
  state["demo-6"].deleting = true;
  state["demo-7"].ready = false;
  state["demo-8"].owner_uid = "somebody-else";
  Told told = {{"demo-0", Say(3, 0)}, {"demo-1", Say(4, 2)}};
  for (const char* name : {"demo-2", "demo-3", "demo-4", "demo-5", "demo-6", "demo-7", "demo-8"}) {
    told[name] = Say(100, 100);
  }
  const ServiceLoad load = Look(state, told);
  REQUIRE(load.serving.size() == 2);
  CHECK(*TotalLoad(load) == 9);
  CHECK(*IsActive(load, 0));
}

TEST_CASE("what is not known is not 0, and it is said of whom it is not known") {
  State state(2);
  state.Serving("demo-0").Serving("demo-1");
  CHECK_THAT(WhyNoTotal(Look(state, {{"demo-0", Say(0, 0)}})),
             Catch::Contains("default/demo-1") && Catch::Contains("not reported here yet"));
  CHECK_THAT(WhyNoTotal(Look(
                 state, {{"demo-0", Say(0, 0)}, {"demo-1", {std::nullopt, kThen, LoadKept(2)}}})),
             Catch::Contains("default/demo-1") && Catch::Contains("num_requests_running"));
  const Told told = {{"demo-0", Say(0, 0)}, {"demo-1", Say(0, 0, kThen - 31s)}};
  CHECK_THAT(WhyNoTotal(Look(state, told)),
             Catch::Contains("default/demo-1") && Catch::Contains("reported last 31 s ago"));
  CHECK(TotalLoad(Look(state, told, kThen - 1s)).ok());
  // Of many agents each is heard of more rarely.
  Told of_many = told;
  for (auto& [pod, load] : of_many) load.kept = LoadKept(2'000);
  CHECK(TotalLoad(Look(state, of_many, kThen + 4min)).ok());
  CHECK_FALSE(TotalLoad(Look(state, of_many, kThen + 5min)).ok());

  // Nor does it count as idle, but what is known to be busy is.
  CHECK(IsActive(Look(state, told), 0).status().code() == StatusCode::kUnavailable);
  CHECK(*IsActive(Look(state, {{"demo-0", Say(1, 0)}}), 0));
}

TEST_CASE("replicas that are wanted and do not serve yet keep it active") {
  State state(2);
  state.Serving("demo-0").Starting("demo-1");
  const Told idle = {{"demo-0", Say(0, 0)}};
  CHECK(*TotalLoad(Look(state, idle)) == 0);
  CHECK(*IsActive(Look(state, idle), 0));
  state["demo-1"].ready = true;
  state["demo-1"].agent_state = AgentState::kServing;
  CHECK_FALSE(*IsActive(Look(state, {{"demo-0", Say(0, 0)}, {"demo-1", Say(0, 0)}}), 0));
}

TEST_CASE("the load of replicas of which none serves yet is not known") {
  State state(2);
  state.Starting("demo-0").Starting("demo-1").Guard("demo-2");
  CHECK_THAT(WhyNoTotal(Look(state, {})), Catch::Contains("none of 2 replicas serves yet"));
  CHECK(*IsActive(Look(state, {}), 0));
}

TEST_CASE("with no replicas there is no load, and nothing that could begin any") {
  State state(0);
  state.Guard("demo-0");
  const ServiceLoad load = Look(state, {{"demo-0", Say(5, 5)}});
  CHECK(*TotalLoad(load) == 0);
  CHECK_FALSE(*IsActive(load, 0));
}

TEST_CASE("it is active when the load is over what activates") {
  State state(1);
  state.Serving("demo-0");
  CHECK_FALSE(*IsActive(Look(state, {{"demo-0", Say(2, 1)}}), 3));
  CHECK(*IsActive(Look(state, {{"demo-0", Say(2, 2)}}), 3));
}

TEST_CASE("a listener is told changes, and again that it is active") {
  CHECK(ShouldTell(std::nullopt, false, 0ms));
  CHECK(ShouldTell(std::nullopt, true, 0ms));
  CHECK(ShouldTell(false, true, 0ms));
  CHECK(ShouldTell(true, false, 0ms));
  CHECK_FALSE(ShouldTell(false, false, 1h));
  CHECK_FALSE(ShouldTell(true, true, 29s));
  CHECK(ShouldTell(true, true, 30s));
}

// Any cluster, any reports, in any order of pods: the answers agree with each other, an answer
// never rests on what is not known, and one more request never makes less of them.
TEST_CASE("answers about load are sound for whatever was reported", "[property]") {
  for (std::uint64_t seed = 0; seed < Seeds(3'000); ++seed) {
    INFO("seed " << seed);
    std::mt19937_64 random(seed);
    const auto pick = [&](int low, int high) {
      return std::uniform_int_distribution(low, high)(random);
    };
    State state(pick(0, 4));
    Told told;
    std::uint64_t counted = 0;
    bool all_known = true;
    int serving = 0;
    for (int i = 0; i < pick(0, 6); ++i) {
      const std::string name = "demo-" + std::to_string(i);
      const bool guard = pick(0, 3) == 0;
      if (guard) {
        state.Guard(name);
      } else {
        state.Serving(name);
      }
      Instance& pod = state[name];
      if (!guard && pick(0, 2) == 0) pod.agent_state = kAgentStates[pick(0, 10)].value;
      if (pick(0, 4) == 0) pod.ready = !pod.ready;
      if (pick(0, 5) == 0) pod.leaving = Leaving{};
      if (pick(0, 5) == 0) pod.deleting = true;
      if (pick(0, 5) == 0) pod.owner_uid = "other";
      const int age = pick(0, 60);
      if (pick(0, 4) > 0) {
        told[name] = Say(pick(0, 5), pick(0, 2), kThen - std::chrono::seconds(age));
        if (pick(0, 5) == 0) told[name].load.reset();
      }
      const bool counts = pod.role == Role::kActive && pod.agent_state == AgentState::kServing &&
                          pod.ready && !pod.leaving && !pod.deleting && pod.owner_uid != "other";
      if (!counts) continue;
      ++serving;
      const bool known = told.contains(name) && told[name].load && age <= 30;
      all_known = all_known && known;
      if (known) counted += told[name].load->total();
    }
    const int wanted = state.Done().service.spec.replicas;
    const ServiceLoad load = Look(state, told);
    const auto total = TotalLoad(load);
    REQUIRE(total.ok() == (all_known && (serving > 0 || wanted == 0)));
    if (total.ok()) REQUIRE(*total == counted);

    const double activation = pick(0, 3);
    const auto active = IsActive(load, activation);
    if (total.ok()) {
      REQUIRE(active.ok());
      REQUIRE(*active == (static_cast<double>(*total) > activation || serving < wanted));
    }
    if (active.ok() && !*active) REQUIRE(total.ok());  // Only what is known is idle.

    std::ranges::shuffle(state.Done().instances, random);
    REQUIRE(Look(state, told) == load);

    for (auto& [name, say] : told) {
      if (say.load) ++say.load->waiting;
    }
    const ServiceLoad more = Look(state, told);
    if (total.ok()) REQUIRE(*TotalLoad(more) >= *total);
    if (active.ok() && *active) REQUIRE(*IsActive(more, activation));
  }
}
