// One broadcast or a pull each, and who belongs to a batch.

#include <catch2/catch.hpp>
#include <limits>

#include "agent/transfer/broadcast_roster.h"

namespace rouse::transfer {
namespace {

using std::chrono::milliseconds;
using TimePoint = BroadcastRoster::TimePoint;

constexpr std::uint64_t kGB = 1'000'000'000;
// Round numbers: a pull of 100 GB takes 1 s, two of them 2 s, a broadcast 0.5 s and 1 s.
constexpr TransportRates kRates{
    .pull = 100e9, .egress = 100e9, .broadcast = 100e9, .setup_seconds = 0.5};

BroadcastBatch Batch(int targets, std::uint64_t bytes = 100 * kGB) {
  BroadcastBatch batch{.source = {"node", "GPU-0"}, .targets = {}, .bytes = bytes, .library = true};
  for (int i = 1; i <= targets; ++i) batch.targets.push_back({"node", "GPU-" + std::to_string(i)});
  return batch;
}

std::string Refusal(const BroadcastBatch& batch) {
  const TransportChoice choice = ChooseTransport(batch, kRates);
  REQUIRE_FALSE(choice.broadcast);
  REQUIRE(choice.broadcast_seconds == 0);
  return choice.reason;
}

TEST_CASE("a broadcast is chosen when its set-up pays", "[broadcast]") {
  const TransportChoice many = ChooseTransport(Batch(2), kRates);
  REQUIRE(many.broadcast);
  REQUIRE(many.pull_seconds == Approx(2.0));
  REQUIRE(many.broadcast_seconds == Approx(1.5));
  REQUIRE(many.reason == "broadcast: 2000 ms by pulls, 1500 ms by broadcast");
  REQUIRE(ChooseTransport(Batch(2), kRates) == many);

  // Half a second is what two targets gain with 50 GB: a byte less, and pulls are chosen.
  REQUIRE(ChooseTransport(Batch(2, 50 * kGB + 1'000'000), kRates).broadcast);
  REQUIRE_FALSE(ChooseTransport(Batch(2, 50 * kGB - 1'000'000), kRates).broadcast);
  REQUIRE(ChooseTransport(Batch(3, 50 * kGB - 1'000'000), kRates).broadcast);

  // A source that can send to two at full rate is as quick by pulls.
  TransportRates wide = kRates;
  wide.egress = 200e9;
  REQUIRE_FALSE(ChooseTransport(Batch(2), wide).broadcast);
  REQUIRE(ChooseTransport(Batch(2), wide).pull_seconds == Approx(1.0));
}

TEST_CASE("by what was measured on H200s a broadcast pays on a full node only", "[broadcast]") {
  // docs/protocols.md and broadcast_source.h give these as the reason not to use it.
  const auto pays = [](int targets, std::uint64_t gb) {
    return ChooseTransport(Batch(targets, gb * kGB), TransportRates{}).broadcast;
  };
  constexpr std::uint64_t kOneGpu = 141;
  for (int targets = 1; targets <= 4; ++targets) REQUIRE_FALSE(pays(targets, kOneGpu));
  REQUIRE_FALSE(pays(5, 106));
  REQUIRE(pays(5, 107));
  REQUIRE_FALSE(pays(7, 66));
  REQUIRE(pays(7, 67));
}

TEST_CASE("more targets or more bytes never turn a broadcast into pulls", "[broadcast]") {
  for (const std::uint64_t bytes : {kGB, 20 * kGB, 60 * kGB, 400 * kGB}) {
    bool before = false;
    for (int targets = 2; targets < 20; ++targets) {
      const bool now = ChooseTransport(Batch(targets, bytes), kRates).broadcast;
      REQUIRE((now || !before));
      REQUIRE((!now || ChooseTransport(Batch(targets, bytes * 2), kRates).broadcast));
      before = now;
    }
  }
}

TEST_CASE("what NCCL cannot do is left to pulls, with the reason", "[broadcast]") {
  REQUIRE_THAT(Refusal(Batch(0)), Catch::Contains("two targets"));
  REQUIRE_THAT(Refusal(Batch(1, 100'000 * kGB)), Catch::Contains("two targets"));
  BroadcastBatch batch = Batch(4);
  batch.library = false;
  REQUIRE_THAT(Refusal(batch), Catch::Contains("no NCCL"));
  batch = Batch(4);
  batch.targets[2].domain = "other";
  REQUIRE_THAT(Refusal(batch), Catch::Contains("domain"));
  batch = Batch(4);
  for (auto& target : batch.targets) target.domain = "";
  batch.source.domain = "";
  REQUIRE_THAT(Refusal(batch), Catch::Contains("domain"));
  batch = Batch(4);
  batch.targets[3].gpu = "GPU-1";
  REQUIRE_THAT(Refusal(batch), Catch::Contains("two on GPU GPU-1"));
  batch = Batch(4);
  batch.targets[0].gpu = batch.source.gpu;
  REQUIRE_THAT(Refusal(batch), Catch::Contains("two on GPU GPU-0"));
  batch = Batch(4);
  batch.targets[0].gpu = "";
  REQUIRE_THAT(Refusal(batch), Catch::Contains("unknown"));
}

TEST_CASE("rates that make no sense mean pulls", "[broadcast]") {
  for (double TransportRates::*rate :
       {&TransportRates::pull, &TransportRates::egress, &TransportRates::broadcast}) {
    for (const double value : {0.0, -1.0, std::numeric_limits<double>::quiet_NaN()}) {
      TransportRates rates = kRates;
      rates.*rate = value;
      REQUIRE_FALSE(ChooseTransport(Batch(10), rates).broadcast);
    }
  }
}

struct World {
  explicit World(std::size_t max_targets = 15)
      : roster({"node", "GPU-0"}, 100 * kGB, true,
               {.window = milliseconds(50),
                .ask_again = milliseconds(10),
                .silence = milliseconds(40),
                .max_targets = max_targets,
                .rates = kRates}) {}

  BroadcastRoster::Answer Ask(int target, int at_ms) {
    const std::string name = std::to_string(target);
    return roster.Ask("lease-" + name, {"node", "GPU-" + name}, TimePoint(milliseconds(at_ms)));
  }
  bool Waits(int target, int at_ms) {
    return Ask(target, at_ms) == BroadcastRoster::Answer(JoinWait{milliseconds(10)});
  }
  bool Pulls(int target, int at_ms) { return std::holds_alternative<JoinPull>(Ask(target, at_ms)); }

  BroadcastRoster roster;
};

TEST_CASE("those who ask within the window get seats of one round", "[broadcast]") {
  World world;
  REQUIRE(world.Waits(1, 0));
  REQUIRE(world.Waits(2, 20));
  REQUIRE(world.Waits(1, 30));
  REQUIRE(world.Waits(3, 49));
  REQUIRE(world.Ask(1, 50) == BroadcastRoster::Answer(JoinSeat{1, 1, 4}));
  REQUIRE(world.Ask(3, 55) == BroadcastRoster::Answer(JoinSeat{1, 3, 4}));
  REQUIRE(world.Ask(2, 60) == BroadcastRoster::Answer(JoinSeat{1, 2, 4}));
  REQUIRE(world.Ask(2, 61) == BroadcastRoster::Answer(JoinSeat{1, 2, 4}));
  REQUIRE(world.Pulls(4, 62));  // too late for this one
  world.roster.EndRound("done");
  REQUIRE(world.Waits(5, 70));
  REQUIRE(world.Waits(6, 90));
  REQUIRE(world.Waits(5, 95));
  REQUIRE(world.Ask(6, 120) == BroadcastRoster::Answer(JoinSeat{2, 2, 3}));
}

TEST_CASE("a batch for which it does not pay pulls, and the next is judged by itself",
          "[broadcast]") {
  World world;
  REQUIRE(world.Waits(1, 0));
  REQUIRE(world.Pulls(1, 50));  // alone
  REQUIRE(world.Waits(2, 60));
  REQUIRE(world.Waits(3, 90));
  REQUIRE(world.Ask(2, 110) == BroadcastRoster::Answer(JoinSeat{1, 1, 3}));
}

TEST_CASE("who stopped asking is left out", "[broadcast]") {
  World world;
  REQUIRE(world.Waits(1, 0));
  REQUIRE(world.Waits(2, 1));  // and never again
  REQUIRE(world.Waits(3, 2));
  REQUIRE(world.Waits(1, 30));
  REQUIRE(world.Waits(3, 31));
  REQUIRE(world.Ask(1, 60) == BroadcastRoster::Answer(JoinSeat{1, 1, 3}));
  REQUIRE(world.Ask(3, 61) == BroadcastRoster::Answer(JoinSeat{1, 2, 3}));
  REQUIRE(world.Pulls(2, 62));
}

TEST_CASE("who cannot take part pulls, and the others are broadcast to", "[broadcast]") {
  World world;
  const auto ask = [&](const std::string& lease, BroadcastMember member) {
    return world.roster.Ask(lease, member, TimePoint());
  };
  REQUIRE(world.Waits(1, 0));
  REQUIRE(ask("elsewhere", {"other", "GPU-7"}) ==
          BroadcastRoster::Answer(JoinPull{"not all of one NVLink domain"}));
  REQUIRE(ask("same", {"node", "GPU-1"}) == BroadcastRoster::Answer(JoinPull{"two on GPU GPU-1"}));
  REQUIRE(ask("source's", {"node", "GPU-0"}) ==
          BroadcastRoster::Answer(JoinPull{"two on GPU GPU-0"}));
  REQUIRE(world.Waits(2, 30));
  REQUIRE(world.Waits(1, 31));
  REQUIRE(world.Ask(1, 50) == BroadcastRoster::Answer(JoinSeat{1, 1, 3}));
}

TEST_CASE("a batch whose targets all went is begun anew", "[broadcast]") {
  World world;
  REQUIRE(world.Waits(1, 0));
  REQUIRE(world.Waits(2, 1000));
  REQUIRE(world.Waits(3, 1030));
  REQUIRE(world.Ask(2, 1050) == BroadcastRoster::Answer(JoinSeat{1, 1, 3}));
}

TEST_CASE("a round that cannot begin sends everyone to pull", "[broadcast]") {
  World world;
  REQUIRE(world.Waits(1, 0));
  REQUIRE(world.Waits(2, 20));
  REQUIRE(std::holds_alternative<JoinSeat>(world.Ask(1, 51)));
  world.roster.EndRound("NCCL is broken");
  REQUIRE(world.Ask(2, 52) == BroadcastRoster::Answer(JoinPull{"NCCL is broken"}));
  REQUIRE(world.Waits(2, 53));  // told once; asking again is a new batch
}

TEST_CASE("nobody waits where even a full batch would pull, and a batch is bounded",
          "[broadcast]") {
  World world(1);  // one target at most: never a broadcast
  REQUIRE(world.Pulls(1, 0));
  World small(2);
  REQUIRE(small.Waits(1, 0));
  REQUIRE(small.Waits(2, 0));
  REQUIRE(small.Ask(3, 1) == BroadcastRoster::Answer(JoinPull{"the batch is full"}));
  BroadcastRoster without({"node", "GPU-0"}, 100 * kGB, false, {.rates = kRates});
  REQUIRE(without.Ask("lease", {"node", "GPU-1"}, TimePoint()) ==
          BroadcastRoster::Answer(JoinPull{"pulls: the source has no NCCL"}));
}

}  // namespace
}  // namespace rouse::transfer
