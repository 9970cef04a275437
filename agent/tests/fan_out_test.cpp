#include "agent/transfer/fan_out.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <random>
#include <set>

namespace rouse::transfer {
namespace {

std::vector<FanOutPeer> Peers(std::uint32_t complete, std::uint32_t targets, std::uint32_t racks,
                              std::uint32_t seed = 0) {
  std::vector<FanOutPeer> peers;
  for (std::uint32_t i = 0; i < complete + targets; ++i) {
    const std::string rack = "rack-" + std::to_string(i % racks);
    peers.push_back(
        {.name = std::to_string(seed) + "/pod-" + std::to_string(i),
         .where = {.zone = "z", .rack = rack, .node = "n" + std::to_string(i), .gpu = ""},
         .complete = i < complete});
  }
  return peers;
}

TEST_CASE("distance is that of the nearest label in common", "[swarm]") {
  const Location here = {.zone = "z", .rack = "r", .node = "n", .gpu = "g"};
  REQUIRE(TierBetween(here, here) == Tier::kSameGpu);
  REQUIRE(TierBetween(here, {"z", "r", "n", "h"}) == Tier::kSameNode);
  REQUIRE(TierBetween(here, {"z", "r", "m", "h"}) == Tier::kSameRack);
  REQUIRE(TierBetween(here, {"y", "r", "m", "h"}) == Tier::kFarther);  // racks of two zones
  REQUIRE(TierBetween(here, {"z", "s", "m", "h"}) == Tier::kSameZone);
  REQUIRE(TierBetween(here, {}) == Tier::kFarther);
  REQUIRE(TierBetween({}, {}) == Tier::kFarther);
}

TEST_CASE("every target keeps a path to a complete peer, and nobody is overloaded",
          "[swarm][property]") {
  const auto seed = GENERATE(range(1u, 201u));
  std::mt19937 random(seed);
  const auto draw = [&](std::uint32_t low, std::uint32_t high) {
    return std::uniform_int_distribution<std::uint32_t>(low, high)(random);
  };
  std::vector<FanOutPeer> peers = Peers(draw(1, 4), draw(1, 60), draw(1, 8), seed);
  std::shuffle(peers.begin(), peers.end(), random);
  const FanOutOptions options = {.sources_per_target = draw(1, 8),
                                 .targets_per_source = draw(1, 8)};
  const auto sources = AssignSources(peers, options);
  REQUIRE(sources.size() == peers.size());
  std::vector<std::uint32_t> load(peers.size(), 0);
  for (std::uint32_t i = 0; i < peers.size(); ++i) {
    const auto& of = sources[i];
    REQUIRE(of.size() <= options.sources_per_target);
    REQUIRE(std::set(of.begin(), of.end()).size() == of.size());
    REQUIRE(std::find(of.begin(), of.end(), i) == of.end());
    for (const std::uint32_t source : of) ++load[source];
    if (peers[i].complete) {
      REQUIRE(of.empty());
      continue;
    }
    std::uint32_t at = i;
    for (std::size_t hops = 0; !peers[at].complete; ++hops) {
      REQUIRE_FALSE(sources[at].empty());
      REQUIRE(hops < peers.size());
      at = sources[at].front();
    }
  }
  REQUIRE(*std::max_element(load.begin(), load.end()) <= options.targets_per_source);
}

TEST_CASE("where room is short, no target is left with few sources", "[swarm]") {
  for (std::uint32_t targets = 9; targets < 80; ++targets) {
    const auto sources = AssignSources(Peers(1, targets, 2), {});
    for (std::uint32_t i = 1; i <= targets; ++i) REQUIRE(sources[i].size() >= 6);
  }
}

TEST_CASE("without a complete peer all paths lead to one target", "[swarm]") {
  const auto sources = AssignSources(Peers(0, 20, 2), {});
  std::vector<std::size_t> walked_over(sources.size(), 0);
  for (std::uint32_t i = 0; i < sources.size(); ++i) {
    std::set<std::uint32_t> seen;
    for (std::uint32_t at = i; seen.insert(at).second && !sources[at].empty();) {
      at = sources[at].front();
    }
    for (const std::uint32_t at : seen) ++walked_over[at];
  }
  REQUIRE(*std::max_element(walked_over.begin(), walked_over.end()) == sources.size());
}

TEST_CASE("near peers are preferred, and some are taken from anywhere", "[swarm]") {
  const auto peers = Peers(1, 255, 16);
  const auto sources = AssignSources(peers, {});
  std::size_t near = 0;
  std::size_t all = 0;
  for (std::uint32_t i = 1; i < peers.size(); ++i) {
    for (const std::uint32_t source : sources[i]) {
      near += peers[source].where.rack == peers[i].where.rack;
      ++all;
    }
  }
  REQUIRE(all > 255 * 7);
  REQUIRE(near * 10 > all * 4);  // blind choice would give a sixteenth
  REQUIRE(near * 10 < all * 8);
}

TEST_CASE("one peer less changes few answers", "[swarm]") {
  auto peers = Peers(1, 127, 8);
  const auto before = AssignSources(peers, {.sources_per_target = 4, .targets_per_source = 1000});
  const std::uint32_t gone = 77;
  peers.erase(peers.begin() + gone);
  const auto after = AssignSources(peers, {.sources_per_target = 4, .targets_per_source = 1000});
  std::size_t changed = 0;
  for (std::uint32_t i = 0; i < peers.size(); ++i) {
    std::set<std::uint32_t> old_names;
    for (const std::uint32_t source : before[i < gone ? i : i + 1]) {
      old_names.insert(source < gone ? source : source - 1);
    }
    for (const std::uint32_t source : after[i]) changed += !old_names.contains(source);
  }
  REQUIRE(changed < 127 * 4 / 10);
}

}  // namespace
}  // namespace rouse::transfer
