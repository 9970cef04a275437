#include <algorithm>
#include <catch2/catch.hpp>
#include <map>
#include <random>

#include "agent/transfer/pull_plan.h"

namespace rouse::transfer {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
const TimePoint kStart{};

PullPlanOptions Options(std::uint64_t arena, std::uint64_t chunk, std::uint64_t piece) {
  PullPlanOptions options;
  options.arena_bytes = arena;
  options.chunk_bytes = chunk;
  options.piece_bytes = piece;
  options.source = "default/demo-0";
  return options;
}

StartGet NextGet(PullPlan& plan, TimePoint now = kStart) {
  const PullAction action = plan.Next(now);
  REQUIRE(std::holds_alternative<StartGet>(action));
  return std::get<StartGet>(action);
}

Status Failure(PullPlan& plan, TimePoint now = kStart) {
  const PullAction action = plan.Next(now);
  REQUIRE(std::holds_alternative<Fail>(action));
  return std::get<Fail>(action).status;
}

bool Waits(PullPlan& plan, TimePoint now = kStart) {
  return std::holds_alternative<Wait>(plan.Next(now));
}

TEST_CASE("chunks are asked for in order, in pieces that end at slab boundaries", "[transfer]") {
  PullPlanOptions options = Options(20, 8, 6);
  options.boundaries = {0, 10, 15};
  options.window = 100;
  PullPlan plan(options, kStart);
  std::vector<std::pair<std::uint64_t, std::uint64_t>> pieces;
  for (auto action = plan.Next(kStart); std::holds_alternative<StartGet>(action);
       action = plan.Next(kStart)) {
    pieces.emplace_back(std::get<StartGet>(action).offset, std::get<StartGet>(action).bytes);
  }
  REQUIRE(pieces == std::vector<std::pair<std::uint64_t, std::uint64_t>>{
                        {0, 6}, {6, 2}, {8, 2}, {10, 5}, {15, 1}, {16, 4}});
}

TEST_CASE("no more pieces than the window are in flight", "[transfer]") {
  PullPlanOptions options = Options(100, 10, 10);
  options.window = 3;
  PullPlan plan(options, kStart);
  const StartGet first = NextGet(plan);
  NextGet(plan);
  NextGet(plan);
  REQUIRE(Waits(plan));
  REQUIRE(plan.in_flight() == 3);
  REQUIRE(plan.OnArrived(first.piece, kStart) == 0);
  REQUIRE(NextGet(plan).offset == 30);
  REQUIRE(Waits(plan));
}

TEST_CASE("no more chunks than allowed wait for their digests", "[transfer]") {
  PullPlanOptions options = Options(100, 10, 10);
  options.window = 10;
  options.max_unverified = 2;
  PullPlan plan(options, kStart);
  const auto first = NextGet(plan);
  const auto second = NextGet(plan);
  REQUIRE(plan.OnArrived(first.piece, kStart) == 0);
  REQUIRE(plan.OnArrived(second.piece, kStart) == 1);
  REQUIRE(Waits(plan));
  plan.OnDigest(1, true);
  REQUIRE(NextGet(plan).offset == 20);
  REQUIRE(Waits(plan));
}

TEST_CASE("a chunk is complete with its last piece, in whatever order they arrive", "[transfer]") {
  PullPlan plan(Options(10, 10, 4), kStart);
  const auto a = NextGet(plan);
  const auto b = NextGet(plan);
  const auto c = NextGet(plan);
  REQUIRE_FALSE(plan.OnArrived(c.piece, kStart));
  REQUIRE_FALSE(plan.OnArrived(a.piece, kStart));
  REQUIRE(plan.OnArrived(b.piece, kStart) == 0);
  REQUIRE_FALSE(plan.OnArrived(b.piece, kStart));  // unknown by now
  REQUIRE(Waits(plan));
  plan.OnDigest(0, true);
  REQUIRE(std::holds_alternative<Finish>(plan.Next(kStart)));
}

TEST_CASE("a chunk that arrived is not finished before its digest matched", "[transfer]") {
  PullPlan plan(Options(10, 10, 10), kStart);
  REQUIRE(plan.OnArrived(NextGet(plan).piece, kStart) == 0);
  REQUIRE(Waits(plan));
  REQUIRE(plan.counters().bytes_arrived == 10);
  REQUIRE(plan.counters().bytes_verified == 0);
}

TEST_CASE("a damaged chunk is pulled again before new ones, and can come out right", "[transfer]") {
  PullPlanOptions options = Options(40, 10, 10);
  options.window = 1;
  PullPlan plan(options, kStart);
  REQUIRE(plan.OnArrived(NextGet(plan).piece, kStart) == 0);
  plan.OnDigest(0, false);
  const auto again = NextGet(plan);
  REQUIRE(again.offset == 0);
  REQUIRE(plan.OnArrived(again.piece, kStart) == 0);
  plan.OnDigest(0, true);
  REQUIRE(NextGet(plan).offset == 10);
  REQUIRE(plan.counters().mismatches == 1);
  REQUIRE(plan.counters().bytes_arrived == 20);
  REQUIRE(plan.counters().bytes_verified == 10);
}

TEST_CASE("a chunk that stays damaged is data loss that names chunk, bytes and source",
          "[transfer]") {
  PullPlanOptions options = Options(40, 10, 10);
  options.max_mismatches = 3;
  options.window = 1;
  options.max_unverified = 1;
  PullPlan plan(options, kStart);
  plan.OnArrived(NextGet(plan).piece, kStart);
  plan.OnDigest(0, true);
  for (int i = 0; i < 3; ++i) {
    const auto get = NextGet(plan);
    REQUIRE(get.offset == 10);
    plan.OnArrived(get.piece, kStart);
    plan.OnDigest(1, false);
  }
  const Status status = Failure(plan);
  REQUIRE(status.code() == StatusCode::kDataLoss);
  REQUIRE_THAT(status.message(), Catch::Contains("default/demo-0") && Catch::Contains("chunk 1") &&
                                     Catch::Contains("bytes 10 to 20") &&
                                     Catch::Contains("3 times"));
}

TEST_CASE("silence of the peer for too long is a missed deadline that names it", "[transfer]") {
  PullPlanOptions options = Options(40, 10, 10);
  options.progress_deadline = seconds(10);
  options.window = 2;
  PullPlan plan(options, kStart);
  const auto first = NextGet(plan);
  NextGet(plan);
  REQUIRE(plan.Next(kStart) == PullAction{Wait{kStart + seconds(10)}});
  plan.OnArrived(first.piece, kStart + seconds(6));
  NextGet(plan, kStart + seconds(6));
  REQUIRE(plan.Next(kStart + seconds(15)) == PullAction{Wait{kStart + seconds(16)}});
  const Status status = Failure(plan, kStart + seconds(16));
  REQUIRE(status.code() == StatusCode::kDeadlineExceeded);
  REQUIRE_THAT(status.message(), Catch::Contains("default/demo-0") && Catch::Contains("10.00 s") &&
                                     Catch::Contains("10 of 40 bytes"));
}

TEST_CASE("one stuck piece is a missed deadline though others arrive", "[transfer]") {
  PullPlanOptions options = Options(1000, 10, 10);
  options.progress_deadline = seconds(10);
  options.piece_deadline = seconds(30);
  options.window = 2;
  PullPlan plan(options, kStart);
  NextGet(plan);  // never arrives
  TimePoint now = kStart;
  for (int i = 1; i <= 5; ++i) {
    const auto get = NextGet(plan, now);
    now = kStart + seconds(i * 5);
    const auto chunk = plan.OnArrived(get.piece, now);
    plan.OnDigest(*chunk, true);
  }
  NextGet(plan, now);
  REQUIRE(plan.Next(kStart + seconds(29)) == PullAction{Wait{kStart + seconds(30)}});
  const Status status = Failure(plan, kStart + seconds(30));
  REQUIRE(status.code() == StatusCode::kDeadlineExceeded);
  REQUIRE_THAT(status.message(), Catch::Contains("bytes 0 to 10"));
}

TEST_CASE("a peer is not blamed for our own slow digests", "[transfer]") {
  PullPlanOptions options = Options(20, 10, 10);
  options.progress_deadline = seconds(10);
  options.max_unverified = 1;
  PullPlan plan(options, kStart);
  plan.OnArrived(NextGet(plan).piece, kStart);
  REQUIRE(Waits(plan, kStart + seconds(60)));
  plan.OnDigest(0, true);
  NextGet(plan, kStart + seconds(60));
  REQUIRE(plan.Next(kStart + seconds(60)) == PullAction{Wait{kStart + seconds(70)}});
}

TEST_CASE("the first failure is the one that is told", "[transfer]") {
  PullPlan plan(Options(20, 10, 10), kStart);
  NextGet(plan);
  plan.OnFailed(Unavailable("connection lost"));
  plan.OnFailed(Unavailable("read cancelled"));
  const Status status = Failure(plan, kStart + seconds(100));
  REQUIRE(status.code() == StatusCode::kUnavailable);
  REQUIRE_THAT(status.message(),
               Catch::Contains("connection lost") && Catch::Contains("default/demo-0"));
}

// Plays a peer that answers in random order, damages some chunks, and digests late.
TEST_CASE("every pull from a peer that answers covers the arena exactly once and finishes",
          "[transfer][property]") {
  const auto seed = GENERATE(range(1u, 301u));
  std::mt19937 random(seed);
  const auto draw = [&](std::uint64_t low, std::uint64_t high) {
    return std::uniform_int_distribution<std::uint64_t>(low, high)(random);
  };
  PullPlanOptions options = Options(draw(1, 500), draw(1, 64), draw(1, 64));
  options.window = static_cast<std::uint32_t>(draw(1, 8));
  options.max_unverified = static_cast<std::uint32_t>(draw(1, 8));
  options.max_mismatches = 1000;
  for (std::uint64_t at = 0; at < options.arena_bytes; at += draw(1, 100))
    options.boundaries.push_back(at);
  PullPlan plan(options, kStart);

  std::vector<StartGet> flight;
  std::vector<std::uint64_t> digests;
  std::vector<int> good(options.arena_bytes, 0);
  std::map<std::uint64_t, std::vector<StartGet>> of_chunk;
  TimePoint now = kStart;
  for (int step = 0; step < 100'000; ++step) {
    const PullAction action = plan.Next(now);
    REQUIRE_FALSE(std::holds_alternative<Fail>(action));
    if (std::holds_alternative<Finish>(action)) {
      REQUIRE(std::all_of(good.begin(), good.end(), [](int times) { return times == 1; }));
      REQUIRE(plan.counters().bytes_verified == options.arena_bytes);
      REQUIRE(flight.empty());
      return;
    }
    if (const auto* get = std::get_if<StartGet>(&action)) {
      REQUIRE(get->bytes > 0);
      REQUIRE(get->bytes <= options.piece_bytes);
      REQUIRE(std::none_of(options.boundaries.begin(), options.boundaries.end(),
                           [&](std::uint64_t edge) {
                             return get->offset < edge && edge < get->offset + get->bytes;
                           }));
      flight.push_back(*get);
      of_chunk[get->offset / options.chunk_bytes].push_back(*get);
      REQUIRE(flight.size() <= options.window);
      continue;
    }
    now += milliseconds(1);
    if (!flight.empty() && (digests.empty() || draw(0, 1) == 0)) {
      const auto it = flight.begin() + static_cast<std::ptrdiff_t>(draw(0, flight.size() - 1));
      const auto chunk = plan.OnArrived(it->piece, now);
      flight.erase(it);
      if (chunk) digests.push_back(*chunk);
    } else {
      REQUIRE_FALSE(digests.empty());  // else it waits for nothing
      const std::uint64_t chunk = digests.back();
      digests.pop_back();
      const bool matches = draw(0, 4) != 0;
      for (const StartGet& get : of_chunk[chunk]) {
        for (std::uint64_t i = get.offset; matches && i < get.offset + get.bytes; ++i) ++good[i];
      }
      of_chunk.erase(chunk);
      plan.OnDigest(chunk, matches);
    }
  }
  FAIL("no end after 100000 steps with seed " << seed);
}

}  // namespace
}  // namespace rouse::transfer
