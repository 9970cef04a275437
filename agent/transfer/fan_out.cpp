#include "agent/transfer/fan_out.h"

#include <algorithm>
#include <tuple>
#include <unordered_map>

#include "agent/transfer/seeded.h"

namespace rouse::transfer {
namespace {

// Peers with their names hashed and their labels numbered, for the comparisons of all with all.
struct Indexed {
  std::uint64_t hash = 0;
  std::uint32_t zone = 0;  // 0 is unknown
  std::uint32_t rack = 0;
  std::uint32_t node = 0;
  std::uint32_t gpu = 0;
  bool complete = false;
};

std::vector<Indexed> Index(std::span<const FanOutPeer> peers) {
  std::unordered_map<std::string, std::uint32_t> numbers{{"", 0}};
  const auto number = [&](const std::string& label) {
    return numbers.emplace(label, static_cast<std::uint32_t>(numbers.size())).first->second;
  };
  std::vector<Indexed> indexed;
  for (const FanOutPeer& peer : peers) {
    indexed.push_back({.hash = HashName(peer.name),
                       .zone = number(peer.where.zone),
                       .rack = number(peer.where.rack),
                       .node = number(peer.where.node),
                       .gpu = number(peer.where.gpu),
                       .complete = peer.complete});
  }
  return indexed;
}

// TierBetween, over numbers.
Tier Distance(const Indexed& a, const Indexed& b) {
  const auto same = [](std::uint32_t x, std::uint32_t y) { return x == y && x != 0; };
  if (same(a.gpu, b.gpu)) return Tier::kSameGpu;
  if (same(a.node, b.node)) return Tier::kSameNode;
  if (same(a.rack, b.rack) && a.zone == b.zone) return Tier::kSameRack;
  if (same(a.zone, b.zone)) return Tier::kSameZone;
  return Tier::kFarther;
}

struct Candidate {
  std::uint32_t peer = 0;
  Tier tier = Tier::kFarther;
  std::uint64_t weight = 0;  // rendezvous weight for this target
};

bool Nearer(const Candidate& a, const Candidate& b) {
  return std::tuple(a.tier, b.weight) < std::tuple(b.tier, a.weight);
}
bool Heavier(const Candidate& a, const Candidate& b) {
  return a.weight > b.weight;
}

// The best few of `candidates`, best first.
template <typename Less>
std::vector<Candidate> Best(std::vector<Candidate>& candidates, std::size_t count, Less less) {
  const auto end =
      candidates.begin() + static_cast<std::ptrdiff_t>(std::min(count, candidates.size()));
  std::partial_sort(candidates.begin(), end, candidates.end(), less);
  return {candidates.begin(), end};
}

}  // namespace

std::vector<std::vector<std::uint32_t>> AssignSources(std::span<const FanOutPeer> peers,
                                                      const FanOutOptions& options) {
  const std::vector<Indexed> indexed = Index(peers);
  std::vector<std::vector<std::uint32_t>> sources(peers.size());
  std::vector<std::uint32_t> load(peers.size(), 0);
  std::vector<std::uint32_t> order;  // complete peers, then targets by their hash
  for (std::uint32_t i = 0; i < peers.size(); ++i) order.push_back(i);
  std::sort(order.begin(), order.end(), [&](std::uint32_t a, std::uint32_t b) {
    return std::tuple(!indexed[a].complete, indexed[a].hash, a) <
           std::tuple(!indexed[b].complete, indexed[b].hash, b);
  });

  std::vector<Candidate> candidates;
  const auto gather = [&](std::uint32_t target, std::size_t end) {
    candidates.clear();
    for (std::size_t i = 0; i < end; ++i) {
      const std::uint32_t peer = order[i];
      if (peer == target || load[peer] >= options.targets_per_source) continue;
      candidates.push_back({.peer = peer,
                            .tier = Distance(indexed[target], indexed[peer]),
                            .weight = Mix(indexed[target].hash ^ Mix(indexed[peer].hash))});
    }
  };
  const auto give = [&](std::uint32_t target, std::uint32_t peer) {
    auto& list = sources[target];
    if (std::find(list.begin(), list.end(), peer) != list.end()) return;
    list.push_back(peer);
    ++load[peer];
  };

  // First everyone's path: each target adds at least the room that it takes.
  for (std::size_t i = 0; i < order.size(); ++i) {
    if (indexed[order[i]].complete) continue;
    gather(order[i], i);
    const auto first = std::min_element(candidates.begin(), candidates.end(), Nearer);
    if (first != candidates.end()) give(order[i], first->peer);
  }
  // Then the rest, near ones and free ones in turn.
  for (const std::uint32_t target : order) {
    if (indexed[target].complete) continue;
    gather(target, order.size());
    const std::size_t count = options.sources_per_target;
    const std::vector<Candidate> near = Best(candidates, count, Nearer);
    const std::vector<Candidate> free = Best(candidates, count, Heavier);
    for (std::size_t i = 0; i < near.size(); ++i) {
      if (sources[target].size() < count) give(target, free[i].peer);
      if (sources[target].size() < count) give(target, near[i].peer);
    }
  }
  return sources;
}

}  // namespace rouse::transfer
