#include "agent/transfer/swarm_plan.h"

#include <catch2/catch.hpp>
#include <set>

namespace rouse::transfer {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
const TimePoint kStart{};
constexpr std::uint64_t kAll = ~std::uint64_t{0};

SwarmPlanOptions Options(std::uint64_t arena, std::uint64_t chunk, std::uint64_t piece) {
  SwarmPlanOptions options;
  options.arena_bytes = arena;
  options.chunk_bytes = chunk;
  options.piece_bytes = piece;
  options.min_bytes_per_second = 0;  // arenas of some bytes
  return options;
}

SwarmSource Complete(std::string name, std::uint32_t max_in_flight = 4,
                     Tier tier = Tier::kFarther) {
  return {.name = std::move(name),
          .tier = tier,
          .max_in_flight = max_in_flight,
          .complete = true,
          .boundaries = {}};
}

SwarmSource Partial(std::string name, std::uint32_t max_in_flight = 4, Tier tier = Tier::kFarther) {
  SwarmSource source = Complete(std::move(name), max_in_flight, tier);
  source.complete = false;
  return source;
}

StartGet NextGet(SwarmPlan& plan, TimePoint now = kStart) {
  const SwarmAction action = plan.Next(now);
  REQUIRE(std::holds_alternative<StartGet>(action));
  return std::get<StartGet>(action);
}

PutAside NextAside(SwarmPlan& plan, TimePoint now = kStart) {
  const SwarmAction action = plan.Next(now);
  REQUIRE(std::holds_alternative<PutAside>(action));
  return std::get<PutAside>(action);
}

Status Failure(SwarmPlan& plan, TimePoint now = kStart) {
  const SwarmAction action = plan.Next(now);
  REQUIRE(std::holds_alternative<Fail>(action));
  return std::get<Fail>(action).status;
}

bool Waits(SwarmPlan& plan, TimePoint now = kStart) {
  return std::holds_alternative<Wait>(plan.Next(now));
}

// Adds a source that is not complete and shows `bits`.
SourceId AddShowing(SwarmPlan& plan, SwarmSource source, std::uint64_t bits) {
  const SourceId id = plan.AddSource(std::move(source), kStart);
  REQUIRE(plan.Next(kStart) == SwarmAction{RefreshAvailability{id}});
  plan.OnAvailability(id, {&bits, 1}, kStart);
  return id;
}

void Verify(SwarmPlan& plan, const StartGet& get, TimePoint now = kStart) {
  const auto chunk = plan.OnArrived(get.piece, now);
  REQUIRE(chunk);
  plan.OnDigest(*chunk, true);
}

TEST_CASE("without a seed, chunks come in order, in pieces that end at both sides' slab boundaries",
          "[swarm]") {
  SwarmPlanOptions options = Options(20, 8, 6);
  options.boundaries = {0, 10};
  SwarmPlan plan(options);
  SwarmSource source = Complete("a", 100);
  source.boundaries = {0, 15};
  plan.AddSource(source, kStart);
  std::vector<std::pair<std::uint64_t, std::uint64_t>> pieces;
  for (auto action = plan.Next(kStart); std::holds_alternative<StartGet>(action);
       action = plan.Next(kStart)) {
    pieces.emplace_back(std::get<StartGet>(action).offset, std::get<StartGet>(action).bytes);
  }
  REQUIRE(pieces == std::vector<std::pair<std::uint64_t, std::uint64_t>>{
                        {0, 6}, {6, 2}, {8, 2}, {10, 5}, {15, 1}, {16, 4}});
}

TEST_CASE("two seeds give two orders, one seed gives one", "[swarm]") {
  const auto order = [](std::uint64_t seed) {
    SwarmPlanOptions options = Options(640, 10, 10);
    options.window = 64;
    options.max_unverified = 64;
    options.seed = seed;
    SwarmPlan plan(options);
    plan.AddSource(Complete("a", 64), kStart);
    std::vector<std::uint64_t> offsets;
    for (int i = 0; i < 64; ++i) offsets.push_back(NextGet(plan).offset);
    REQUIRE(std::set(offsets.begin(), offsets.end()).size() == 64);
    return offsets;
  };
  REQUIRE(order(1) == order(1));
  REQUIRE(order(1) != order(2));
}

TEST_CASE("window, a source's bound and max_unverified each hold requests back", "[swarm]") {
  SwarmPlanOptions options = Options(1000, 10, 10);
  options.window = 5;
  SECTION("window") {
    SwarmPlan plan(options);
    plan.AddSource(Complete("a", 3), kStart);
    plan.AddSource(Complete("b", 3), kStart);
    for (int i = 0; i < 5; ++i) NextGet(plan);
    REQUIRE(Waits(plan));
  }
  SECTION("bound") {
    SwarmPlan plan(options);
    plan.AddSource(Complete("a", 3), kStart);
    const auto first = NextGet(plan);
    NextGet(plan);
    NextGet(plan);
    REQUIRE(Waits(plan));
    plan.OnArrived(first.piece, kStart);
    NextGet(plan);
    REQUIRE(Waits(plan));
  }
  SECTION("max_unverified") {
    options.max_unverified = 2;
    SwarmPlan plan(options);
    plan.AddSource(Complete("a", 5), kStart);
    const auto a = NextGet(plan);
    const auto b = NextGet(plan);
    plan.OnArrived(a.piece, kStart);
    REQUIRE(plan.OnArrived(b.piece, kStart) == 1);
    REQUIRE(Waits(plan));
    plan.OnDigest(1, true);
    NextGet(plan);
    REQUIRE(Waits(plan));
  }
}

TEST_CASE("a chunk counts once its digest matched, after its last piece", "[swarm]") {
  SwarmPlan plan(Options(10, 10, 4));
  plan.AddSource(Complete("a"), kStart);
  const auto a = NextGet(plan);
  const auto b = NextGet(plan);
  const auto c = NextGet(plan);
  REQUIRE_FALSE(plan.OnArrived(c.piece, kStart));
  REQUIRE_FALSE(plan.OnArrived(a.piece, kStart));
  REQUIRE(plan.OnArrived(b.piece, kStart) == 0);
  REQUIRE_FALSE(plan.OnArrived(b.piece, kStart));  // unknown by now
  REQUIRE(Waits(plan));
  REQUIRE(plan.counters().bytes_arrived == 10);
  REQUIRE(plan.counters().bytes_verified == 0);
  REQUIRE_FALSE(plan.verified().Test(0));
  plan.OnDigest(0, true);
  REQUIRE(plan.verified().Test(0));
  REQUIRE(plan.Next(kStart) == SwarmAction{Finish{}});
  REQUIRE(plan.Sources()[0].bytes_verified == 10);
}

TEST_CASE("nearer sources are filled before farther ones, equal ones in turn", "[swarm]") {
  SwarmPlan plan(Options(1000, 10, 10));
  plan.AddSource(Complete("far", 2, Tier::kSameZone), kStart);
  plan.AddSource(Complete("near-a", 2, Tier::kSameNode), kStart);
  plan.AddSource(Complete("near-b", 2, Tier::kSameNode), kStart);
  std::vector<SourceId> asked;
  for (int i = 0; i < 6; ++i) asked.push_back(NextGet(plan).source);
  REQUIRE(asked == std::vector<SourceId>{1, 2, 1, 2, 0, 0});
  REQUIRE(Waits(plan));
}

TEST_CASE("the rarest chunk goes first, and only what a bitmap shows is asked for", "[swarm]") {
  SwarmPlan plan(Options(40, 10, 10));
  const SourceId seed = plan.AddSource(Complete("seed", 1), kStart);
  const SourceId peer = AddShowing(plan, Partial("peer", 4), 0b0011);
  std::set<std::pair<SourceId, std::uint64_t>> asked;
  for (int i = 0; i < 3; ++i) {
    const auto get = NextGet(plan);
    asked.emplace(get.source, get.offset);
  }
  // The seed alone has chunk 2.
  REQUIRE(asked == std::set<std::pair<SourceId, std::uint64_t>>{{seed, 20}, {peer, 0}, {peer, 10}});
  REQUIRE(Waits(plan));
}

TEST_CASE("what a bitmap shows later is asked for then", "[swarm]") {
  SwarmPlanOptions options = Options(40, 10, 10);
  SwarmPlan plan(options);
  const SourceId peer = AddShowing(plan, Partial("peer"), 0);
  REQUIRE(plan.Next(kStart) == SwarmAction{Wait{kStart + options.refresh_hungry}});
  const TimePoint later = kStart + options.refresh_hungry;
  REQUIRE(plan.Next(later) == SwarmAction{RefreshAvailability{peer}});
  REQUIRE(Waits(plan, later));  // one look at a time
  const std::uint64_t bits = 0b1000;
  plan.OnAvailability(peer, {&bits, 1}, later);
  REQUIRE(NextGet(plan, later).offset == 30);
}

TEST_CASE("a source that has enough is looked at less often", "[swarm]") {
  SwarmPlanOptions options = Options(640, 10, 10);
  options.progress_deadline = seconds(10);
  SwarmPlan plan(options);
  AddShowing(plan, Partial("peer", 2), kAll);
  NextGet(plan);
  NextGet(plan);
  REQUIRE(plan.Next(kStart) == SwarmAction{Wait{kStart + options.refresh_sated}});
}

TEST_CASE("a damaged chunk is pulled again before new ones and from another source", "[swarm]") {
  SwarmPlanOptions options = Options(400, 10, 10);
  SwarmPlan plan(options);
  const SourceId bad = plan.AddSource(Complete("bad", 1, Tier::kSameNode), kStart);
  const SourceId good = plan.AddSource(Complete("good", 1), kStart);
  const auto first = NextGet(plan);
  const auto second = NextGet(plan);
  REQUIRE(first.source == bad);
  REQUIRE(second.source == good);
  plan.OnDigest(*plan.OnArrived(first.piece, kStart), false);
  // The nearer source is free and the other is not, but it sent the chunk damaged.
  REQUIRE(NextGet(plan).offset == 20);
  REQUIRE(Waits(plan));
  Verify(plan, second);
  const auto again = NextGet(plan);
  REQUIRE(again.source == good);
  REQUIRE(again.offset == first.offset);
  Verify(plan, again);
  REQUIRE(plan.counters().mismatches == 1);
  REQUIRE(plan.Sources()[bad].damaged == 1);
  REQUIRE(plan.Sources()[bad].status.ok());
}

TEST_CASE("a source that sends damaged chunks too often is put aside, and told", "[swarm]") {
  SwarmPlan plan(Options(400, 10, 10));
  const SourceId bad = plan.AddSource(Complete("bad", 3), kStart);
  const auto a = NextGet(plan);
  const auto b = NextGet(plan);
  const auto c = NextGet(plan);
  plan.OnDigest(*plan.OnArrived(a.piece, kStart), false);
  plan.OnDigest(*plan.OnArrived(b.piece, kStart), false);
  const PutAside aside = NextAside(plan);
  REQUIRE(aside.source == bad);
  REQUIRE(aside.why.code() == StatusCode::kDataLoss);
  REQUIRE_THAT(aside.why.message(),
               Catch::Contains("bad") && Catch::Contains("2 times") && Catch::Contains("chunk 1 "));
  REQUIRE(Waits(plan));                            // told once
  REQUIRE_FALSE(plan.OnArrived(c.piece, kStart));  // of no use any more
  plan.AddSource(Complete("good"), kStart);
  std::set<std::uint64_t> offsets;
  for (int i = 0; i < 3; ++i) offsets.insert(NextGet(plan).offset);
  REQUIRE(offsets == std::set<std::uint64_t>{0, 10, 20});
}

TEST_CASE("an only source may send a damaged chunk again, and can come out right", "[swarm]") {
  SwarmPlan plan(Options(40, 10, 10));
  plan.AddSource(Complete("only", 1), kStart);
  plan.OnDigest(*plan.OnArrived(NextGet(plan).piece, kStart), false);
  const auto again = NextGet(plan);
  REQUIRE(again.offset == 0);
  Verify(plan, again);
  REQUIRE(NextGet(plan).offset == 10);
}

TEST_CASE("a source that fails costs only the chunks in flight on it", "[swarm]") {
  SwarmPlan plan(Options(60, 10, 5));
  const SourceId lost = plan.AddSource(Complete("lost", 3), kStart);
  const SourceId kept = plan.AddSource(Complete("kept", 2), kStart);
  std::vector<StartGet> of_lost;
  std::vector<StartGet> of_kept;
  for (int i = 0; i < 5; ++i) {
    const auto get = NextGet(plan);
    (get.source == lost ? of_lost : of_kept).push_back(get);
  }
  plan.OnArrived(of_lost[0].piece, kStart);
  const auto chunk = plan.OnArrived(of_lost[1].piece, kStart);  // whole, and waits for its digest
  REQUIRE(chunk);
  plan.OnSourceFailed(lost, Unavailable("connection lost"));
  plan.OnSourceFailed(lost, Unavailable("read cancelled"));
  const PutAside aside = NextAside(plan);
  REQUIRE(aside.why.code() == StatusCode::kUnavailable);
  REQUIRE_THAT(aside.why.message(), Catch::Contains("lost: connection lost"));
  REQUIRE(plan.in_flight() == 2);
  plan.OnDigest(*chunk, true);
  plan.OnArrived(of_kept[0].piece, kStart);
  // Both pieces of the chunk of which one was in flight.
  REQUIRE(NextGet(plan) == StartGet{.piece = of_lost[2].piece + 2,
                                    .offset = of_lost[2].offset,
                                    .bytes = 5,
                                    .source = kept});
  REQUIRE(plan.counters().bytes_verified == 10);
}

TEST_CASE("a source that is silent or keeps a piece too long is put aside", "[swarm]") {
  SwarmPlanOptions options = Options(1000, 10, 10);
  options.progress_deadline = seconds(10);
  options.piece_deadline = seconds(15);
  options.window = 2;
  SwarmPlan plan(options);
  plan.AddSource(Complete("slow", 2), kStart);
  const auto stuck = NextGet(plan);
  const auto moving = NextGet(plan);
  REQUIRE(plan.Next(kStart) == SwarmAction{Wait{kStart + seconds(10)}});
  SECTION("silent") {
    const PutAside aside = NextAside(plan, kStart + seconds(10));
    REQUIRE(aside.why.code() == StatusCode::kDeadlineExceeded);
    REQUIRE_THAT(aside.why.message(), Catch::Contains("slow: nothing arrived for 10.00 s"));
  }
  SECTION("one piece") {
    Verify(plan, moving, kStart + seconds(9));
    NextGet(plan, kStart + seconds(9));
    REQUIRE(plan.Next(kStart + seconds(14)) == SwarmAction{Wait{kStart + seconds(15)}});
    const PutAside aside = NextAside(plan, kStart + seconds(15));
    REQUIRE_THAT(aside.why.message(), Catch::Contains("arena bytes 0 to 10 did not arrive"));
    REQUIRE(plan.in_flight() == 0);
  }
  REQUIRE_FALSE(plan.OnArrived(stuck.piece, kStart + seconds(16)));
}

TEST_CASE("a source that trickles is put aside although something always arrives", "[swarm]") {
  SwarmPlanOptions options = Options(1000, 10, 10);
  options.progress_deadline = seconds(2);
  options.piece_deadline = seconds(60);
  options.starved_deadline = milliseconds(0);
  options.min_bytes_per_second = 20;
  SwarmPlan plan(options);
  plan.AddSource(Complete("trickle", 2), kStart);
  TimePoint now = kStart;
  StartGet owed = NextGet(plan, now);
  StartGet next = NextGet(plan, now);
  const auto arrive = [&](std::chrono::milliseconds later) {
    now += later;
    Verify(plan, owed, now);
    owed = next;
    next = NextGet(plan, now);
  };
  // 20 bytes a second are enough for ever...
  for (int i = 0; i < 20; ++i) arrive(milliseconds(500));
  // ...10 are not.
  arrive(milliseconds(1000));
  now += milliseconds(1000);
  const PutAside aside = NextAside(plan, now);
  REQUIRE(aside.why.code() == StatusCode::kDeadlineExceeded);
  REQUIRE_THAT(aside.why.message(), Catch::Contains("sent only 10 bytes in 2"));
}

TEST_CASE("what is there already counts and is not asked for", "[swarm]") {
  SwarmPlanOptions options = Options(95, 10, 10);
  options.have = {0b11'1111'0110};
  SwarmPlan plan(options);
  REQUIRE(plan.counters().chunks_verified == 8);
  REQUIRE(plan.counters().bytes_verified == 75);
  plan.AddSource(Complete("a"), kStart);
  const StartGet first = NextGet(plan);
  const StartGet second = NextGet(plan);
  REQUIRE(first.offset == 0);
  REQUIRE(second.offset == 30);
  REQUIRE(Waits(plan));
  Verify(plan, first);
  Verify(plan, second);
  REQUIRE(plan.Next(kStart) == SwarmAction{Finish{}});
  REQUIRE(plan.counters().bytes_arrived == 20);
}

TEST_CASE("where looks at a bitmap take long they become rarer", "[swarm]") {
  SwarmPlan plan(Options(1000, 10, 10));
  const SourceId id = plan.AddSource(Partial("a"), kStart);
  REQUIRE(plan.Next(kStart) == SwarmAction{RefreshAvailability{id}});
  const std::uint64_t nothing = 0;
  plan.OnAvailability(id, {&nothing, 1}, kStart + milliseconds(1));
  REQUIRE(Waits(plan, kStart + milliseconds(15)));
  REQUIRE(plan.Next(kStart + milliseconds(16)) == SwarmAction{RefreshAvailability{id}});
  plan.OnAvailability(id, {&nothing, 1}, kStart + milliseconds(116));
  REQUIRE(Waits(plan, kStart + milliseconds(16 + 199)));
  REQUIRE(plan.Next(kStart + milliseconds(16 + 200)) == SwarmAction{RefreshAvailability{id}});
}

TEST_CASE("a source whose bitmap never arrives is put aside", "[swarm]") {
  SwarmPlanOptions options = Options(1000, 10, 10);
  options.piece_deadline = seconds(5);
  SwarmPlan plan(options);
  const SourceId mute = plan.AddSource(Partial("mute"), kStart);
  REQUIRE(plan.Next(kStart) == SwarmAction{RefreshAvailability{mute}});
  REQUIRE(plan.Next(kStart) == SwarmAction{Wait{kStart + seconds(5)}});
  REQUIRE_THAT(NextAside(plan, kStart + seconds(5)).why.message(),
               Catch::Contains("its availability did not arrive in 5.000 s"));
  plan.OnAvailability(mute, {&kAll, 1}, kStart + seconds(5));
  REQUIRE(Waits(plan, kStart + seconds(5)));
}

TEST_CASE("a source is not blamed for our own slow digests", "[swarm]") {
  SwarmPlanOptions options = Options(20, 10, 10);
  options.progress_deadline = seconds(10);
  options.starved_deadline = seconds(1);
  options.max_unverified = 1;
  SwarmPlan plan(options);
  plan.AddSource(Complete("a"), kStart);
  plan.OnArrived(NextGet(plan).piece, kStart);
  REQUIRE(Waits(plan, kStart + seconds(60)));
  plan.OnDigest(0, true);
  NextGet(plan, kStart + seconds(60));
  REQUIRE(plan.Next(kStart + seconds(60)) == SwarmAction{Wait{kStart + seconds(70)}});
}

TEST_CASE("without a source it waits for one, then fails and names what is missing", "[swarm]") {
  SwarmPlanOptions options = Options(100, 10, 10);
  options.starved_deadline = seconds(4);
  SwarmPlan plan(options);
  REQUIRE(plan.Next(kStart) == SwarmAction{Wait{kStart + seconds(4)}});
  const SourceId peer = AddShowing(plan, Partial("peer", 8), 0b1111110111);
  for (int i = 0; i < 8; ++i) Verify(plan, NextGet(plan, kStart), kStart);
  Verify(plan, NextGet(plan, kStart), kStart);
  REQUIRE(Waits(plan));
  plan.OnSourceFailed(peer, Unavailable("pod deleted"));
  NextAside(plan);
  REQUIRE(plan.Next(kStart + seconds(1)) == SwarmAction{Wait{kStart + seconds(4)}});

  SECTION("nobody comes") {
    const Status status = Failure(plan, kStart + seconds(4));
    REQUIRE(status.code() == StatusCode::kUnavailable);
    REQUIRE_THAT(status.message(), Catch::Contains("1 of 10 chunks are missing (3;") &&
                                       Catch::Contains("90 of 100 bytes") &&
                                       Catch::Contains("4.000 s") &&
                                       Catch::Contains("peer: pod deleted"));
    plan.AddSource(Complete("late"), kStart + seconds(5));
    REQUIRE(Failure(plan, kStart + seconds(5)) == status);
  }
  SECTION("one comes in time") {
    plan.AddSource(Complete("late"), kStart + seconds(3));
    const auto get = NextGet(plan, kStart + seconds(3));
    REQUIRE(get.offset == 30);
    REQUIRE(Waits(plan, kStart + seconds(5)));
    Verify(plan, get, kStart + seconds(5));
    REQUIRE(plan.Next(kStart + seconds(5)) == SwarmAction{Finish{}});
  }
}

TEST_CASE("with a starved deadline of zero, the loss of the only source fails at once", "[swarm]") {
  SwarmPlanOptions options = Options(40, 10, 10);
  options.starved_deadline = milliseconds(0);
  options.max_damaged = 3;
  SwarmPlan plan(options);
  plan.AddSource(Complete("default/demo-0", 1), kStart);
  Verify(plan, NextGet(plan));
  for (int i = 0; i < 3; ++i) plan.OnDigest(*plan.OnArrived(NextGet(plan).piece, kStart), false);
  NextAside(plan);
  const Status status = Failure(plan);
  REQUIRE(status.code() == StatusCode::kDataLoss);
  REQUIRE_THAT(status.message(), Catch::Contains("default/demo-0") && Catch::Contains("chunk 1 ") &&
                                     Catch::Contains("bytes 10 to 20") &&
                                     Catch::Contains("3 times"));
}

}  // namespace
}  // namespace rouse::transfer
