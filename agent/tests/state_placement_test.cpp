// Where copies of bundles are: properties over many seeded lists of agents.

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <map>
#include <set>
#include <variant>

#include "agent/state/hydration.h"
#include "agent/state/placement.h"
#include "common/seeded.h"
#include "common/sha256.h"

using namespace rouse;
using namespace rouse::agent;

namespace {

std::string FingerprintOf(int number) {
  return Sha256Hex("bundle " + std::to_string(number));
}

Keeper Agent(int number, int nodes) {
  return {.pod = "demo-" + std::to_string(number),
          .node = nodes == 0 ? "" : "node-" + std::to_string(number % nodes),
          .address = "http://10.0.0.1:" + std::to_string(number)};
}

std::vector<Keeper> Agents(int count, int nodes) {
  std::vector<Keeper> agents;
  for (int i = 0; i < count; ++i) agents.push_back(Agent(i, nodes));
  return agents;
}

std::set<std::string> Names(const std::vector<Keeper>& keepers) {
  std::set<std::string> names;
  for (const Keeper& keeper : keepers) names.insert(keeper.pod);
  return names;
}

/// How many of `after` are not in `before`.
std::size_t Moved(const std::vector<Keeper>& before, const std::vector<Keeper>& after) {
  const auto had = Names(before);
  return static_cast<std::size_t>(std::count_if(
      after.begin(), after.end(), [&](const Keeper& keeper) { return !had.contains(keeper.pod); }));
}

}  // namespace

TEST_CASE("all agree on the places of a bundle, in whatever order they know the agents") {
  std::vector<Keeper> agents = Agents(50, 10);
  for (int bundle = 0; bundle < 100; ++bundle) {
    const auto places = PlacesOf(FingerprintOf(bundle), agents, 3);
    CHECK(Names(places).size() == 3);
    Shuffle(agents, static_cast<std::uint64_t>(bundle));
    CHECK(PlacesOf(FingerprintOf(bundle), agents, 3) == places);
  }
}

TEST_CASE("an agent that comes or goes changes one place of a bundle at most, and only its own") {
  // Nodes that are not known, fewer of them than copies, and more.
  for (const int nodes : {0, 1, 2, 7, 50}) {
    const std::vector<Keeper> agents = Agents(50, nodes);
    for (int bundle = 0; bundle < 40; ++bundle) {
      const std::string fingerprint = FingerprintOf(bundle);
      const auto places = PlacesOf(fingerprint, agents, 3);
      for (std::size_t gone = 0; gone < agents.size(); ++gone) {
        std::vector<Keeper> left = agents;
        left.erase(left.begin() + static_cast<std::ptrdiff_t>(gone));
        const auto after = PlacesOf(fingerprint, left, 3);
        const bool was_place = Names(places).contains(agents[gone].pod);
        INFO(nodes << " nodes, bundle " << bundle << ", without " << agents[gone].pod);
        // The other way round it is the one that comes.
        REQUIRE(Moved(places, after) == (was_place ? 1u : 0u));
        REQUIRE(Moved(after, places) == (was_place ? 1u : 0u));
      }
    }
  }
}

TEST_CASE("every agent is a place of about as many bundles as any other") {
  const std::vector<Keeper> agents = Agents(50, 50);
  std::map<std::string, int> count;
  constexpr int kBundles = 5'000;
  for (int bundle = 0; bundle < kBundles; ++bundle) {
    for (const Keeper& place : PlacesOf(FingerprintOf(bundle), agents, 2)) ++count[place.pod];
  }
  const double expected = 2.0 * kBundles / 50;
  CHECK(count.size() == 50);
  for (const auto& [pod, bundles] : count) {
    INFO(pod << ": " << bundles);
    CHECK(std::abs(bundles - expected) < 5 * std::sqrt(expected));
  }
  // What one more takes over is its share and no more.
  std::vector<Keeper> more = agents;
  more.push_back(Agent(50, 51));
  std::size_t moved = 0;
  for (int bundle = 0; bundle < kBundles; ++bundle) {
    moved +=
        Moved(PlacesOf(FingerprintOf(bundle), agents, 2), PlacesOf(FingerprintOf(bundle), more, 2));
  }
  CHECK(static_cast<double>(moved) < 1.2 * 2 * kBundles / 51);
}

TEST_CASE("copies are on different nodes while there are enough of them, else on all there are") {
  for (int bundle = 0; bundle < 100; ++bundle) {
    std::set<std::string> nodes;
    for (const Keeper& place : PlacesOf(FingerprintOf(bundle), Agents(50, 3), 3)) {
      nodes.insert(place.node);
    }
    CHECK(nodes.size() == 3);
    CHECK(Names(PlacesOf(FingerprintOf(bundle), Agents(50, 2), 3)).size() == 3);
    CHECK(Names(PlacesOf(FingerprintOf(bundle), Agents(2, 2), 3)).size() == 2);
  }
  CHECK(PlacesOf(FingerprintOf(0), {}, 3).empty());
  CHECK(PlacesOf(FingerprintOf(0), Agents(5, 5), 0).empty());
}

TEST_CASE("whoever leaves is no place, but is asked for what it has") {
  std::vector<Keeper> agents = Agents(20, 20);
  const std::string fingerprint = FingerprintOf(1);
  const auto places = PlacesOf(fingerprint, agents, 2);
  for (Keeper& agent : agents) agent.leaving = agent.pod == places[0].pod;
  CHECK_FALSE(Names(PlacesOf(fingerprint, agents, 2)).contains(places[0].pod));
  const auto asked = WhomToAsk(fingerprint, agents, 2, places[1].pod);
  CHECK(asked.size() == 2 + kAskFurther);
  CHECK(asked[0].pod == places[0].pod);
  CHECK_FALSE(Names(asked).contains(places[1].pod));  // Itself.
  CHECK(WhomToAsk(fingerprint, agents, 0, "x").empty());
}

TEST_CASE("a copy is given up only by who is none of the places, when all of those have it") {
  const std::vector<Keeper> agents = Agents(20, 20);
  const std::string fingerprint = FingerprintOf(1);
  const auto order = PlacementOrder(fingerprint, agents);
  KeepView view{.pod = order[5].pod, .own = false, .copies = 2, .holding = {}};
  KeepStep step = NextKeepStep(fingerprint, view, agents);
  CHECK(step.places == std::vector<Keeper>{order[0], order[1]});
  CHECK(step.missing == step.places);
  CHECK_FALSE(step.surplus);
  view.holding = {order[1].pod, order[2].pod};
  step = NextKeepStep(fingerprint, view, agents);
  CHECK(step.missing == std::vector<Keeper>{order[0]});
  CHECK_FALSE(step.surplus);
  view.holding = {order[0].pod, order[1].pod};
  CHECK(NextKeepStep(fingerprint, view, agents).surplus);
  // Its own instance's, a place's, and one that nobody else is to have are none too many.
  view.own = true;
  CHECK_FALSE(NextKeepStep(fingerprint, view, agents).surplus);
  view.own = false;
  view.pod = order[1].pod;
  step = NextKeepStep(fingerprint, view, agents);
  CHECK(step.places == std::vector<Keeper>{order[0]});
  CHECK_FALSE(step.surplus);
  view.pod = "of-no-list";
  CHECK_FALSE(NextKeepStep(fingerprint, view, {}).surplus);
}

TEST_CASE("of two bundles of one fingerprint one is the better for all") {
  CHECK(BundleRank{2, "a"} > BundleRank{1, "b"});
  CHECK(BundleRank{1, "b"} > BundleRank{1, "a"});
  CHECK(BundleRank{1, "b"} >= BundleRank{1, "b"});
}

// All ask all, at moments of their own; who compiles has it after a while, or fails.
TEST_CASE("of many that start together one compiles, or the next one when it fails") {
  struct Instance {
    std::string pod;
    std::int64_t decided_at_us = 0;
    int asks_at_ms = 0;
    StateStanding standing = StateStanding::kHydrating;
    int ready_at_ms = 0;
  };
  constexpr int kMany = 24;
  constexpr int kCompileMs = 20'000;
  constexpr int kDeadlineMs = 120'000;
  struct Outcome {
    int compiled = 0;
    int took = 0;
  };
  const auto run = [&](std::uint64_t seed, int failures, int compile_ms) {
    std::vector<Instance> all;
    for (int i = 0; i < kMany; ++i) {
      seed = Mix(seed);
      all.push_back({.pod = "demo-" + std::to_string(i),
                     .decided_at_us = static_cast<std::int64_t>(seed % 5),
                     .asks_at_ms = static_cast<int>(seed / 5 % 300)});
    }
    Outcome outcome;
    for (int now = 0; now <= kDeadlineMs + 1'000; ++now) {
      for (Instance& one : all) {
        if (one.standing == StateStanding::kCompiling && now == one.ready_at_ms) {
          one.standing = failures-- > 0 ? StateStanding::kNone : StateStanding::kHeld;
        }
        if (one.standing != StateStanding::kHydrating || now < one.asks_at_ms) continue;
        one.asks_at_ms = now + 300;
        HydrationView view{.pod = one.pod,
                           .decided_at_us = one.decided_at_us,
                           .operator_answered = true,
                           .others = {},
                           .elapsed = std::chrono::milliseconds(now)};
        for (const Instance& other : all) {
          if (&other != &one) {
            view.others.push_back({other.pod, other.standing, other.decided_at_us});
          }
        }
        const auto step = NextHydrationStep(view, {});
        if (std::holds_alternative<hydration::Take>(step)) {
          one.standing = StateStanding::kHeld;
          ++outcome.took;
        } else if (std::holds_alternative<hydration::GiveUp>(step)) {
          one.standing = StateStanding::kCompiling;
          one.ready_at_ms = now + compile_ms;
          ++outcome.compiled;
        }
      }
    }
    return outcome;
  };
  for (std::uint64_t seed = 0; seed < 3; ++seed) {
    const Outcome good = run(seed, 0, kCompileMs);
    CHECK(good.compiled == 1);
    CHECK(good.took == kMany - 1);
    const Outcome failing = run(seed, 2, kCompileMs);
    CHECK(failing.compiled == 3);
    CHECK(failing.took == kMany - 3);
  }
  // It takes longer than the others wait: each for itself then, and none of them earlier.
  CHECK(run(7, 0, kDeadlineMs * 2).compiled == kMany);
}
