// A fan-out: one instance has a rank's weights and N others pull them, each with the agent's real
// SwarmPlan and told of peers by the real AssignSources, over a modelled Fabric. One rank stands
// for all ranks of an instance, which move the same bytes at the same time over NICs of their own.

#pragma once

#include <cstdint>
#include <memory>
#include <queue>
#include <string>
#include <vector>

#include "agent/transfer/fan_out.h"
#include "agent/transfer/swarm_plan.h"
#include "bench/simulate_fanout/fabric.h"

namespace rouse::fanout {

enum class Mode {
  kSwarm,              ///< Verified chunks are served on at once.
  kStar,               ///< All pull from the one source.
  kServeWhenComplete,  ///< A target serves once it is complete; each source serves one at a time.
};

struct Options {
  Mode mode = Mode::kSwarm;
  std::uint32_t targets = 64;
  double dying = 0;                             ///< Share of the targets that die on the way.
  std::uint64_t arena_bytes = 43'500'000'000u;  ///< Of the rank.
  std::uint64_t unit_bytes = 4u << 20;          ///< Chunk, and piece.
  double nic_rate = 47e9;                       ///< Bytes per second and direction.
  double nvlink_rate = 400e9;                   ///< The same, between instances of one node.
  double digest_rate = 1e12;                    ///< Bytes per second.
  std::uint32_t instances_per_node = 1;
  std::uint32_t nodes_per_rack = 16;
  std::uint32_t racks_per_zone = 16;
  std::uint32_t sources_per_target = 8;
  std::uint32_t gets_per_source = 2;
  Nanoseconds refresh_cost = 10'000;    ///< On top of the round trip.
  Nanoseconds tell_peers = 50'000'000;  ///< To hear of other peers once one was put aside.
  std::int64_t refresh_us = 1000;       ///< Between two looks at a peer that has too little.
  std::int64_t deadline_ms = 250;       ///< For a piece; the dead are silent.
  std::uint64_t seed = 1;
};

struct Outcome {
  std::vector<double> ready_seconds;  ///< Of the targets that lived, ascending.
  std::uint32_t died = 0;
  std::uint32_t failed = 0;        ///< Lived and gave up.
  std::uint64_t source_bytes = 0;  ///< Sent by the first source.
  std::uint64_t most_bytes = 0;    ///< Sent by whoever sent most.
  double mean_bytes = 0;           ///< Sent by each instance, the first source included.
  std::uint64_t events = 0;
};

class World {
 public:
  explicit World(const Options& options);

  Outcome Run();

 private:
  struct Get {
    std::uint32_t target = 0;
    std::uint64_t piece = 0;
    transfer::SourceId source = 0;
    std::uint32_t from = 0;
    std::uint64_t bytes = 0;
    FlowId flow = 0;
    bool flowing = false;
    bool used = false;
  };
  struct Instance {
    std::unique_ptr<transfer::SwarmPlan> plan;  // none: the first source
    std::vector<std::uint32_t> sources;         // instance by SourceId
    std::vector<std::uint32_t> gets;            // under way, in gets_
    Port nic_out = 0;
    Port nic_in = 0;
    Port nvlink_out = 0;
    Port nvlink_in = 0;
    Nanoseconds digest_free = 0;
    Nanoseconds timer = kNever;
    Nanoseconds ready = kNever;
    std::uint64_t sent = 0;
    bool dead = false;
    bool failed = false;
  };
  enum class What : std::uint8_t { kBegin, kAvailability, kDigest, kTimer, kDeath, kPeers };
  struct Event {
    Nanoseconds at = 0;
    std::uint64_t order = 0;
    What what = What::kTimer;
    std::uint32_t instance = 0;
    std::uint64_t detail = 0;
    bool operator>(const Event& other) const {
      return at != other.at ? at > other.at : order > other.order;
    }
  };

  void AddInstances();
  void ChooseDeaths();
  void Push(Nanoseconds at, What what, std::uint32_t instance, std::uint64_t detail = 0);
  void Handle(const Event& event);
  void EndFlow(FlowId flow);
  void Drive(std::uint32_t target);
  void StartGet(std::uint32_t target, const transfer::StartGet& get);
  void BeginFlow(std::uint32_t get);
  void DropGets(std::uint32_t target, transfer::SourceId source);
  void Die(std::uint32_t instance);
  void TellPeers(std::uint32_t target);
  void AddSource(std::uint32_t target, std::uint32_t source);
  void MatchWaiting();
  bool Complete(std::uint32_t instance) const;
  transfer::Tier TierOf(std::uint32_t a, std::uint32_t b) const;

  Options options_;
  Fabric fabric_;
  std::vector<Instance> instances_;  // 0 is the first source
  std::vector<transfer::Location> places_;
  std::vector<std::vector<std::uint32_t>> assigned_;
  bool assignment_stale_ = true;
  std::vector<Get> gets_;
  std::vector<std::uint32_t> free_gets_;
  std::vector<std::uint32_t> get_of_flow_;
  std::priority_queue<Event, std::vector<Event>, std::greater<>> events_;
  std::uint64_t order_ = 0;
  Nanoseconds now_ = 0;
  std::uint32_t open_ = 0;  // targets that are neither ready, dead nor failed
  // Serve when complete: who may serve and who waits for that.
  std::vector<std::uint32_t> idle_;
  std::vector<std::uint32_t> waiting_;
};

}  // namespace rouse::fanout
