// Of whom the operator tells an agent: peers with weights, siblings, keepers.

#include <catch2/catch.hpp>
#include <map>
#include <set>

#include "operator/plan/planner.h"
#include "operator/plan/source.h"
#include "operator/tests/state.h"

using namespace rouse;
using namespace rouse::plan;
using namespace rouse::plan::testing;
using std::chrono::seconds;

TEST_CASE("peers are offered from the same node first, then ready ones") {
  State state(5);
  state.Serving("demo-0", "node-b").Serving("demo-1", "node-a").Serving("demo-2", "node-a");
  state.Serving("demo-3", "node-b").Serving("demo-4", "node-b").Serving("demo-5", "node-a");
  state["demo-1"].ready = false;
  state["demo-3"].weights->servable = false;
  state["demo-4"].launch_identity = "other";
  state["demo-5"].owner_uid = "another-service";
  Instance target = state.Pod("demo-9", seconds(1));
  target.node = "node-a";
  std::vector<const Instance*> all;
  for (const Instance& i : state.Done().instances) all.push_back(&i);
  const auto names = [&] {
    Lines out;
    for (const Peer& peer : PeersFor(target, all)) out.push_back(peer.pod);
    return out;
  };
  CHECK(names() == Lines{"demo-2", "demo-1", "demo-0"});
  target.node = "node-c";
  CHECK(names().back() == "demo-1");
  target.uid = "uid-demo-2";
  CHECK(names() == Lines{"demo-0", "demo-1"});
}

TEST_CASE("a target expects weights only of those that have them, or get them without it") {
  const auto expects = [](State& state, const std::string& name) {
    std::vector<const Instance*> all;
    for (const Instance& i : state.Done().instances) all.push_back(&i);
    return IsExpecting(state[name], all, Policy{}, kNow);
  };
  State state(3);
  state.Starting("demo-1", StartPath::kPeer, AgentState::kPulling, seconds(20));
  CHECK_FALSE(expects(state, "demo-1"));  // Itself does not count.
  state.Starting("demo-2", StartPath::kPeer, AgentState::kPulling, seconds(10));
  // Two that wait for peers: the later one for the earlier one, and not the other way round.
  CHECK_FALSE(expects(state, "demo-1"));
  CHECK(expects(state, "demo-2"));
  SECTION("one that has fallen back") {
    state["demo-2"].agent_state = AgentState::kLoading;
    CHECK(expects(state, "demo-1"));
  }
  SECTION("one that starts from storage") {
    state.Starting("demo-3", StartPath::kStorage, AgentState::kReady, seconds(1));
    CHECK(expects(state, "demo-1"));
    state["demo-3"].agent_state = AgentState::kFailed;
    CHECK_FALSE(expects(state, "demo-1"));
  }
  SECTION("one that serves, until its weights are gone") {
    state.Serving("demo-0");
    CHECK(expects(state, "demo-1"));
    state["demo-0"].weights.reset();
    CHECK_FALSE(expects(state, "demo-1"));
    state["demo-0"].timeline->total_us = 590'000'000;  // It may just not have published yet.
    CHECK(expects(state, "demo-1"));
    state["demo-0"].deleting = true;
    CHECK_FALSE(expects(state, "demo-1"));
  }
  SECTION("one of another launch") {
    state.Serving("demo-0");
    state["demo-0"].launch_identity = "other";
    CHECK_FALSE(expects(state, "demo-1"));
  }
}

TEST_CASE("siblings are all of the launch that run or start, whatever they hold, nearest first") {
  State state(6);
  state.Starting("target");
  state.Starting("same-node", StartPath::kStorage, AgentState::kStarting);
  state.Serving("far", "node-z");
  state.Starting("silent");
  state["silent"].address.clear();
  state["silent"].node = "node-y";
  state.Pending("no-node");
  for (const char* name : {"failed", "deleted", "other-launch", "down"}) state.Serving(name);
  state["failed"].agent_state = AgentState::kFailed;
  state["deleted"].deleting = true;
  state["other-launch"].launch_identity = "other";
  state["down"].agent_down = true;
  std::vector<const Instance*> others;
  for (const Instance& instance : state.Done().instances) others.push_back(&instance);
  const auto siblings = SiblingsOf(state["target"], others);
  REQUIRE(siblings.size() == 3);
  CHECK(siblings[0].pod == "same-node");
  CHECK(siblings[0].address == "https://10.0.0.1:7411");
  CHECK(siblings[0].decided_at_us == kNowUs - 10'000'000);
  CHECK(siblings[1].pod == "far");  // It serves.
  CHECK(siblings[2].pod == "silent");
  CHECK(siblings[2].address.empty());
}

TEST_CASE("of many that start together all know the ones that were decided first") {
  State state(200);
  for (int i = 0; i < 200; ++i) {
    state.Starting("demo-" + std::to_string(i), StartPath::kStorage, AgentState::kHydrating,
                   std::chrono::seconds(10 + i));
    state["demo-" + std::to_string(i)].node = "node-" + std::to_string(i % 50);
  }
  std::vector<const Instance*> all;
  for (const Instance& instance : state.Done().instances) all.push_back(&instance);
  for (const Instance* target : all) {
    const auto siblings = SiblingsOf(*target, all);
    CHECK(siblings.size() == 64);
    std::set<std::string> names;
    for (const Sibling& sibling : siblings) names.insert(sibling.pod);
    CHECK(names.size() == 64);
    for (int i = 192; i < 200; ++i) {
      const std::string early = "demo-" + std::to_string(i);
      if (target->name != early) CHECK(names.contains(early));
    }
  }
}

TEST_CASE("keepers are all that have a store and can be reached, those that go marked") {
  State state(6);
  for (const char* name : {"here", "asleep", "leaving", "deleted", "failed"}) state.Serving(name);
  for (const char* name : {"lost", "down", "no-store", "ended", "stranger"}) state.Serving(name);
  state.Starting("silent");
  for (Instance& instance : state.Done().instances) instance.keeps_caches = true;
  state["asleep"].agent_state = AgentState::kAsleep;
  state["leaving"].leaving = Leaving{};
  state["deleted"].deleting = true;
  state["failed"].agent_state = AgentState::kFailed;
  state["lost"].node_lost = true;
  state["down"].agent_down = true;
  state["no-store"].keeps_caches = false;
  state["ended"].phase = "Failed";
  state["stranger"].owner_uid.clear();
  state["silent"].address.clear();
  state["here"].service = "another";
  std::vector<const Instance*> all;
  for (const Instance& instance : state.Done().instances) all.push_back(&instance);
  std::map<std::string, bool> leaving;
  for (const Keeper& keeper : KeepersOf(all)) leaving[keeper.pod] = keeper.leaving;
  CHECK(leaving == std::map<std::string, bool>{{"here", false},
                                               {"asleep", false},
                                               {"leaving", true},
                                               {"deleted", true},
                                               {"failed", true}});
}

TEST_CASE("of more keepers than are named, one more or less changes one") {
  State state(1);
  for (int i = 0; i < 400; ++i) {
    state.Serving("demo-" + std::to_string(i));
    state["demo-" + std::to_string(i)].keeps_caches = true;
  }
  std::vector<const Instance*> all;
  for (const Instance& instance : state.Done().instances) all.push_back(&instance);
  const auto named = KeepersOf(all);
  REQUIRE(named.size() == kMaxKeepers);
  std::erase_if(all, [&](const Instance* i) { return i->name == named[7].pod; });
  auto after = KeepersOf(all);
  REQUIRE(after.size() == kMaxKeepers);
  after.pop_back();
  auto expected = named;
  expected.erase(expected.begin() + 7);
  CHECK(after == expected);
}

TEST_CASE("peers that still pull are offered too, nearest first, behind one that has everything") {
  State state(6);
  state.Serving("far", "node-z");
  for (const char* name : {"same-node", "same-rack", "same-zone", "elsewhere", "empty", "failed"}) {
    state.Starting(name, StartPath::kPeer, AgentState::kPulling);
    state[name].node = std::string("node-of-") + name;
    state[name].zone = "z1";
    state[name].weights = WeightsReport{.bytes = 1000, .ranks = 1, .arriving = true};
  }
  state["same-node"].node = "node-a";
  state["same-rack"].rack = "r1";
  state["elsewhere"].zone = "z2";
  state["elsewhere"].rack = "r1";  // of another zone: another rack
  state["empty"].weights.reset();
  state["failed"].agent_state = AgentState::kFailed;
  Instance target = state.Pod("target", seconds(1));
  target.node = "node-a";
  target.rack = "r1";
  target.zone = "z1";
  std::vector<const Instance*> all;
  for (const Instance& i : state.Done().instances) all.push_back(&i);
  const std::vector<Peer> peers = PeersFor(target, all);
  Lines said;
  for (const Peer& peer : peers) {
    said.push_back(peer.pod + (peer.partial ? " partial " : " complete ") +
                   std::string(json::NameOf<Distance>(peer.distance, kDistances)));
  }
  CHECK(said == Lines{"far complete Farther", "same-node partial Node", "same-rack partial Rack",
                      "same-zone partial Zone", "elsewhere partial Farther"});
}

TEST_CASE("targets are sent to different peers, and never to more than an answer holds") {
  State state(200);
  for (int i = 0; i < 100; ++i) {
    const std::string name = "demo-" + std::to_string(i);
    state.Starting(name, StartPath::kPeer, AgentState::kPulling);
    state[name].node = "node-" + std::to_string(i);
    state[name].weights = WeightsReport{.bytes = 1000, .ranks = 1, .arriving = true};
  }
  state.Serving("demo-100", "node-s");
  std::vector<const Instance*> all;
  for (const Instance& i : state.Done().instances) all.push_back(&i);
  std::map<std::string, int> asked;
  for (const Instance* target : all) {
    const std::vector<Peer> peers = PeersFor(*target, all);
    CHECK(peers.size() == 64);
    if (target->name != "demo-100") CHECK(peers.front().pod == "demo-100");
    for (std::size_t i = 1; i < 8; ++i) ++asked[peers[i].pod];
  }
  for (const auto& [name, count] : asked) {
    INFO(name);
    CHECK(count < 25);  // 7 on average
  }
}
