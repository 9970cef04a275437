#include "agent/transfer/fan_out.h"

#include <algorithm>
#include <numeric>
#include <tuple>
#include <unordered_map>

#include "common/seeded.h"

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

// Whom a target would like to pull from, nearest first or regardless of distance; more than it
// gets, because others have taken some.
struct Wishes {
  std::vector<Candidate> near;
  std::vector<Candidate> free;
};

template <typename Less>
std::vector<Candidate> Best(std::vector<Candidate>& candidates, std::size_t count, Less less) {
  const auto end =
      candidates.begin() + static_cast<std::ptrdiff_t>(std::min(count, candidates.size()));
  std::partial_sort(candidates.begin(), end, candidates.end(), less);
  return {candidates.begin(), end};
}

class Assignment {
 public:
  Assignment(std::span<const FanOutPeer> peers, const FanOutOptions& options)
      : options_(options),
        indexed_(Index(peers)),
        sources_(peers.size()),
        wishes_(peers.size()),
        load_(peers.size(), 0),
        order_(peers.size()) {
    std::iota(order_.begin(), order_.end(), 0);
    std::sort(order_.begin(), order_.end(), [&](std::uint32_t a, std::uint32_t b) {
      return std::tuple(!indexed_[a].complete, indexed_[a].hash, a) <
             std::tuple(!indexed_[b].complete, indexed_[b].hash, b);
    });
  }

  std::vector<std::vector<std::uint32_t>> Run() {
    GivePaths();
    GiveRest();
    return std::move(sources_);
  }

 private:
  bool HasRoom(std::uint32_t peer) const { return load_[peer] < options_.targets_per_source; }

  // All but the target among the first `end` of the order, with room or without.
  void Gather(std::uint32_t target, std::size_t end, bool with_room) {
    candidates_.clear();
    for (std::size_t i = 0; i < end; ++i) {
      const std::uint32_t peer = order_[i];
      if (peer == target || (with_room && !HasRoom(peer))) continue;
      candidates_.push_back({.peer = peer,
                             .tier = Distance(indexed_[target], indexed_[peer]),
                             .weight = Mix(indexed_[target].hash ^ Mix(indexed_[peer].hash))});
    }
  }

  // Each target adds at least the room that it takes, so that one is always found but for the
  // first.
  void GivePaths() {
    for (std::size_t i = 0; i < order_.size(); ++i) {
      const std::uint32_t target = order_[i];
      if (indexed_[target].complete) continue;
      Gather(target, i, true);
      const auto first = std::min_element(candidates_.begin(), candidates_.end(), Nearer);
      if (first != candidates_.end()) Give(target, first->peer);
    }
  }

  // In rounds, so that where room is short all get about the same.
  void GiveRest() {
    const std::size_t many = std::size_t{4} * options_.sources_per_target;
    for (const std::uint32_t target : order_) {
      if (indexed_[target].complete) continue;
      Gather(target, order_.size(), false);
      wishes_[target].near = Best(candidates_, many, Nearer);
      wishes_[target].free = Best(candidates_, many, Heavier);
    }
    for (std::uint32_t round = 1; round <= options_.sources_per_target; ++round) {
      for (const std::uint32_t target : order_) {
        if (indexed_[target].complete || sources_[target].size() >= round) continue;
        const Wishes& wishes = wishes_[target];
        if (GiveFirst(target, round % 2 == 0 ? wishes.free : wishes.near)) continue;
        Gather(target, order_.size(), true);
        GiveFirst(target, Best(candidates_, options_.sources_per_target, Nearer));
      }
    }
  }

  bool GiveFirst(std::uint32_t target, const std::vector<Candidate>& wishes) {
    const auto& has = sources_[target];
    for (const Candidate& wish : wishes) {
      if (!HasRoom(wish.peer) || std::find(has.begin(), has.end(), wish.peer) != has.end())
        continue;
      Give(target, wish.peer);
      return true;
    }
    return false;
  }

  void Give(std::uint32_t target, std::uint32_t peer) {
    sources_[target].push_back(peer);
    ++load_[peer];
  }

  const FanOutOptions& options_;
  const std::vector<Indexed> indexed_;
  std::vector<std::vector<std::uint32_t>> sources_;
  std::vector<Wishes> wishes_;
  std::vector<std::uint32_t> load_;
  std::vector<std::uint32_t> order_;  // complete peers, then targets by their hash
  std::vector<Candidate> candidates_;
};

}  // namespace

std::vector<std::vector<std::uint32_t>> AssignSources(std::span<const FanOutPeer> peers,
                                                      const FanOutOptions& options) {
  return Assignment(peers, options).Run();
}

}  // namespace rouse::transfer
