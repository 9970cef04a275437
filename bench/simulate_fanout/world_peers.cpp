// The part of World that says who there is, who dies and who is told of whom.

#include <algorithm>
#include <cmath>
#include <numeric>

#include "bench/simulate_fanout/world.h"
#include "common/seeded.h"

namespace rouse::fanout {

using transfer::Tier;
using transfer::TimePoint;

World::World(const Options& options) : options_(options) {
  AddInstances();
  ChooseDeaths();
  for (std::uint32_t i = 1; i < instances_.size(); ++i) Push(0, What::kPeers, i);
  idle_ = {0};
  open_ = options_.targets;
}

void World::AddInstances() {
  for (std::uint32_t i = 0; i <= options_.targets; ++i) {
    Instance& instance = instances_.emplace_back();
    instance.nic_out = fabric_.AddPort(options_.nic_rate);
    instance.nic_in = fabric_.AddPort(options_.nic_rate);
    instance.nvlink_out = fabric_.AddPort(options_.nvlink_rate);
    instance.nvlink_in = fabric_.AddPort(options_.nvlink_rate);
    const std::uint32_t node = i / options_.instances_per_node;
    const std::uint32_t rack = node / options_.nodes_per_rack;
    places_.push_back({.zone = "zone-" + std::to_string(rack / options_.racks_per_zone),
                       .rack = "rack-" + std::to_string(rack),
                       .node = "node-" + std::to_string(node),
                       .gpu = ""});
    if (i == 0) continue;
    transfer::SwarmPlanOptions plan;
    plan.arena_bytes = options_.arena_bytes;
    plan.chunk_bytes = options_.unit_bytes;
    plan.piece_bytes = options_.unit_bytes;
    plan.window = options_.sources_per_target * options_.gets_per_source;
    plan.max_unverified = 2 * plan.window;
    plan.refresh_hungry = std::chrono::microseconds(options_.refresh_us);
    plan.refresh_sated = 8 * plan.refresh_hungry;
    plan.progress_deadline = std::chrono::milliseconds(options_.deadline_ms);
    plan.piece_deadline = plan.progress_deadline;
    // In these two a target waits for its turn, and in a star for everyone's.
    if (options_.mode == Mode::kStar) plan.piece_deadline = std::chrono::hours(1);
    if (options_.mode == Mode::kStar) plan.progress_deadline = std::chrono::hours(1);
    if (options_.mode != Mode::kSwarm) plan.starved_deadline = std::chrono::hours(1);
    plan.seed = Mix(options_.seed ^ Mix(i));
    instance.plan = std::make_unique<transfer::SwarmPlan>(plan);
  }
}

// The dying are drawn without replacement, and die at any time of an undisturbed single pull.
void World::ChooseDeaths() {
  if (options_.dying <= 0) return;
  const auto count = std::max<std::size_t>(
      1, static_cast<std::size_t>(std::lround(options_.dying * options_.targets)));
  std::vector<std::uint32_t> targets(options_.targets);
  std::iota(targets.begin(), targets.end(), 1);
  Shuffle(targets, Mix(options_.seed));
  const double pull = static_cast<double>(options_.arena_bytes) / options_.nic_rate * 1e9;
  std::uint64_t random = options_.seed;
  for (std::size_t i = 0; i < count; ++i) {
    random = Mix(random);
    const double share = static_cast<double>(random >> 11) / 9007199254740992.0;  // 2^53
    Push(static_cast<Nanoseconds>(share * pull), What::kDeath, targets[i]);
  }
}

void World::TellPeers(std::uint32_t target) {
  if (options_.mode == Mode::kStar) return AddSource(target, 0);
  if (options_.mode == Mode::kServeWhenComplete) {
    waiting_.push_back(target);
    return MatchWaiting();
  }
  if (assignment_stale_) {
    std::vector<transfer::FanOutPeer> peers;
    std::vector<std::uint32_t> alive;
    for (std::uint32_t i = 0; i < instances_.size(); ++i) {
      if (instances_[i].dead) continue;
      alive.push_back(i);
      peers.push_back(
          {.name = "pod-" + std::to_string(i), .where = places_[i], .complete = Complete(i)});
    }
    const auto sources = AssignSources(peers, {.sources_per_target = options_.sources_per_target,
                                               .targets_per_source = options_.sources_per_target});
    assigned_.assign(instances_.size(), {});
    for (std::size_t i = 0; i < alive.size(); ++i) {
      for (const std::uint32_t source : sources[i]) assigned_[alive[i]].push_back(alive[source]);
    }
    assignment_stale_ = false;
  }
  for (const std::uint32_t source : assigned_[target]) {
    const auto& known = instances_[target].sources;
    if (std::find(known.begin(), known.end(), source) == known.end()) AddSource(target, source);
  }
}

void World::AddSource(std::uint32_t target, std::uint32_t source) {
  instances_[target].sources.push_back(source);
  instances_[target].plan->AddSource({.name = "pod-" + std::to_string(source),
                                      .tier = TierOf(target, source),
                                      .max_in_flight = options_.gets_per_source,
                                      .complete = Complete(source),
                                      .boundaries = {}},
                                     TimePoint(std::chrono::nanoseconds(now_)));
}

// Serve when complete: gives each idle source a target that waits.
void World::MatchWaiting() {
  std::vector<std::uint32_t> matched;
  while (!idle_.empty() && !waiting_.empty()) {
    const std::uint32_t source = idle_.back();
    const std::uint32_t target = waiting_.back();
    if (instances_[source].dead) {
      idle_.pop_back();
    } else if (instances_[target].dead) {
      waiting_.pop_back();
    } else {
      idle_.pop_back();
      waiting_.pop_back();
      AddSource(target, source);
      matched.push_back(target);
    }
  }
  for (const std::uint32_t target : matched) Drive(target);
}

bool World::Complete(std::uint32_t id) const {
  return id == 0 || instances_[id].ready != kNever;
}

Tier World::TierOf(std::uint32_t a, std::uint32_t b) const {
  const std::uint32_t node_a = a / options_.instances_per_node;
  const std::uint32_t node_b = b / options_.instances_per_node;
  if (node_a == node_b) return Tier::kSameNode;
  const std::uint32_t rack_a = node_a / options_.nodes_per_rack;
  const std::uint32_t rack_b = node_b / options_.nodes_per_rack;
  if (rack_a == rack_b) return Tier::kSameRack;
  return rack_a / options_.racks_per_zone == rack_b / options_.racks_per_zone ? Tier::kSameZone
                                                                              : Tier::kFarther;
}

}  // namespace rouse::fanout
