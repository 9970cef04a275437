#include "bench/simulate_fanout/world.h"

#include <algorithm>
#include <stdexcept>
#include <variant>

namespace rouse::fanout {

using transfer::SourceId;
using transfer::Tier;
using transfer::TimePoint;

namespace {

TimePoint At(Nanoseconds time) {
  return TimePoint(std::chrono::nanoseconds(time));
}

// There and back: what switches and cables of a data centre take.
Nanoseconds RoundTrip(Tier tier) {
  switch (tier) {
    case Tier::kSameGpu:
    case Tier::kSameNode:
      return 2'000;
    case Tier::kSameRack:
      return 5'000;
    case Tier::kSameZone:
      return 10'000;
    case Tier::kFarther:
      return 50'000;
  }
  return 0;
}

}  // namespace

Outcome World::Run() {
  Outcome outcome;
  while (open_ > 0) {
    const Nanoseconds flow_ends = fabric_.NextEnd();
    if (events_.empty() && flow_ends == kNever) throw std::runtime_error("the model stands still");
    ++outcome.events;
    if (events_.empty() || flow_ends <= events_.top().at) {
      now_ = flow_ends;
      EndFlow(fabric_.EndNext(now_));
    } else {
      const Event event = events_.top();
      events_.pop();
      now_ = event.at;
      Handle(event);
    }
  }
  for (const Instance& instance : instances_) {
    outcome.died += instance.dead;
    outcome.failed += instance.failed;
    if (instance.ready != kNever && !instance.dead) {
      outcome.ready_seconds.push_back(static_cast<double>(instance.ready) * 1e-9);
    }
    outcome.most_bytes = std::max(outcome.most_bytes, instance.sent);
    outcome.mean_bytes +=
        static_cast<double>(instance.sent) / static_cast<double>(instances_.size());
  }
  std::sort(outcome.ready_seconds.begin(), outcome.ready_seconds.end());
  outcome.source_bytes = instances_[0].sent;
  return outcome;
}

void World::Push(Nanoseconds at, What what, std::uint32_t instance, std::uint64_t detail) {
  events_.push({.at = at, .order = order_++, .what = what, .instance = instance, .detail = detail});
}

void World::Handle(const Event& event) {
  if (event.what == What::kBegin) return BeginFlow(static_cast<std::uint32_t>(event.detail));
  Instance& instance = instances_[event.instance];
  if (instance.dead || instance.ready != kNever || instance.failed) {
    if (event.what == What::kDeath) Die(event.instance);
    return;
  }
  switch (event.what) {
    case What::kBegin:
      return;
    case What::kAvailability: {
      const auto source = static_cast<SourceId>(event.detail);
      const Instance& from = instances_[instance.sources[source]];
      if (from.dead) return;
      instance.plan->OnAvailability(source, from.plan->verified().words(), At(now_));
      break;
    }
    case What::kDigest:
      instance.plan->OnDigest(event.detail, true);
      break;
    case What::kTimer:
      if (instance.timer != now_) return;  // another one came after it
      instance.timer = kNever;
      break;
    case What::kDeath:
      return Die(event.instance);
    case What::kPeers:
      TellPeers(event.instance);
      break;
  }
  Drive(event.instance);
}

void World::EndFlow(FlowId flow) {
  const std::uint32_t id = get_of_flow_[flow];
  const Get get = gets_[id];
  gets_[id].used = false;
  free_gets_.push_back(id);
  Instance& target = instances_[get.target];
  std::erase(target.gets, id);
  instances_[get.from].sent += get.bytes;
  if (const auto chunk = target.plan->OnArrived(get.piece, At(now_))) {
    target.digest_free =
        std::max(target.digest_free, now_) +
        static_cast<Nanoseconds>(static_cast<double>(get.bytes) / options_.digest_rate * 1e9);
    Push(target.digest_free, What::kDigest, get.target, *chunk);
  }
  Drive(get.target);
}

// Does what the target's planner says until it waits or ends.
void World::Drive(std::uint32_t id) {
  Instance& target = instances_[id];
  for (;;) {
    const transfer::SwarmAction action = target.plan->Next(At(now_));
    if (const auto* get = std::get_if<transfer::StartGet>(&action)) {
      StartGet(id, *get);
    } else if (const auto* look = std::get_if<transfer::RefreshAvailability>(&action)) {
      const std::uint32_t source = target.sources[look->source];
      Push(now_ + RoundTrip(TierOf(id, source)) + options_.refresh_cost, What::kAvailability, id,
           look->source);
    } else if (const auto* aside = std::get_if<transfer::PutAside>(&action)) {
      DropGets(id, aside->source);
      Push(now_ + options_.tell_peers, What::kPeers, id);
    } else if (const auto* wait = std::get_if<transfer::Wait>(&action)) {
      const Nanoseconds until = std::max(wait->until.time_since_epoch().count(), now_ + 1);
      if (until < target.timer) {
        target.timer = until;
        Push(until, What::kTimer, id);
      }
      return;
    } else {
      target.ready = std::holds_alternative<transfer::Finish>(action) ? now_ : kNever;
      target.failed = target.ready == kNever;
      --open_;
      if (options_.mode == Mode::kServeWhenComplete) {
        idle_.push_back(target.sources.back());
        idle_.push_back(id);
        MatchWaiting();
      }
      return;
    }
  }
}

void World::StartGet(std::uint32_t target, const transfer::StartGet& get) {
  std::uint32_t id = 0;
  if (free_gets_.empty()) {
    id = static_cast<std::uint32_t>(gets_.size());
    gets_.emplace_back();
  } else {
    id = free_gets_.back();
    free_gets_.pop_back();
  }
  const std::uint32_t from = instances_[target].sources[get.source];
  gets_[id] = {.target = target,
               .piece = get.piece,
               .source = get.source,
               .from = from,
               .bytes = get.bytes,
               .used = true};
  instances_[target].gets.push_back(id);
  Push(now_ + RoundTrip(TierOf(target, from)), What::kBegin, target, id);
}

void World::BeginFlow(std::uint32_t id) {
  Get& get = gets_[id];
  // Given up meanwhile. (It is freed here, so that no other get has taken its number.)
  if (!get.used) return free_gets_.push_back(id);
  if (instances_[get.from].dead) {
    get.flowing = true;  // as far as the target knows; no byte ever comes
    get.flow = ~FlowId{0};
    return;
  }
  const bool same_node = TierOf(get.target, get.from) <= Tier::kSameNode;
  const Instance& from = instances_[get.from];
  const Instance& target = instances_[get.target];
  get.flow = fabric_.Start(same_node ? from.nvlink_out : from.nic_out,
                           same_node ? target.nvlink_in : target.nic_in, get.bytes, now_);
  get.flowing = true;
  if (get_of_flow_.size() <= get.flow) get_of_flow_.resize(get.flow + 1);
  get_of_flow_[get.flow] = id;
}

// The target ends its reads from the source.
void World::DropGets(std::uint32_t target, SourceId source) {
  std::erase_if(instances_[target].gets, [&](std::uint32_t id) {
    Get& get = gets_[id];
    if (get.source != source) return false;
    get.used = false;
    if (get.flowing) {
      if (get.flow != ~FlowId{0}) fabric_.Cancel(get.flow, now_);
      free_gets_.push_back(id);
    }
    return true;
  });
}

// Falls silent: what it sends and receives stops, and nobody is told.
void World::Die(std::uint32_t id) {
  Instance& instance = instances_[id];
  if (instance.dead) return;
  if (instance.ready == kNever && !instance.failed) --open_;
  instance.dead = true;
  assignment_stale_ = true;
  for (SourceId source = 0; source < instance.sources.size(); ++source) DropGets(id, source);
  for (Get& get : gets_) {
    if (!get.used || get.from != id || !get.flowing || get.flow == ~FlowId{0}) continue;
    fabric_.Cancel(get.flow, now_);
    get.flow = ~FlowId{0};
  }
  if (options_.mode == Mode::kServeWhenComplete && instance.ready == kNever &&
      !instance.sources.empty()) {
    idle_.push_back(instance.sources.back());
    MatchWaiting();
  }
}

}  // namespace rouse::fanout
