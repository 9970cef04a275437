#include <catch2/catch.hpp>
#include <random>

#include "agent/startup/timeline_builder.h"

using namespace rouse;
using namespace rouse::agent;

namespace {

std::vector<std::int64_t> Ends(const Timeline& timeline) {
  std::vector<std::int64_t> ends;
  for (const Span& phase : timeline.phases) ends.push_back(phase.end_us);
  return ends;
}

constexpr std::int64_t kT = 1'700'000'000'000'000;

Moments Full() {
  return {.decided_at_us = kT,
          .agent_started_us = kT + 10,
          .engine_may_start_us = kT + 20,
          .engine_imported_us = kT + 30,
          .worker_started_us = kT + 40,
          .load_started_us = kT + 50,
          .model_built_us = kT + 60,
          .weights_loaded_us = kT + 62,
          .weights_processed_us = kT + 67,
          .model_ready_us = kT + 70,
          .compiled_us = kT + 75,
          .profiled_us = kT + 80,
          .kv_cache_ready_us = kT + 90,
          .captured_us = kT + 100,
          .engine_healthy_us = kT + 110,
          .first_token_us = kT + 120};
}

}  // namespace

TEST_CASE("A full set of moments becomes twelve phases that follow each other") {
  const auto timeline = BuildTimeline(StartPath::kPeer, Full(), {{"Pull", kT + 15, kT + 45}});
  REQUIRE(timeline.has_value());
  CHECK(Ends(*timeline) ==
        std::vector<std::int64_t>{10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120});
  CHECK(timeline->phases[6] == Span{"Weights", 60, 70});
  CHECK(timeline->lanes ==
        std::vector<Span>{{"PostProcess", 62, 67}, {"Compile", 70, 75}, {"Pull", 15, 45}});
  CHECK(timeline->total_us == 120);
}

TEST_CASE("Without a first token there is no timeline") {
  Moments moments = Full();
  moments.first_token_us.reset();
  CHECK_FALSE(BuildTimeline(StartPath::kPeer, moments, {}).has_value());
}

TEST_CASE("A moment that never came gives its time to the next phase") {
  Moments moments = Full();
  moments.engine_imported_us.reset();
  moments.model_ready_us.reset();
  CHECK(Ends(*BuildTimeline(StartPath::kPeer, moments, {})) ==
        std::vector<std::int64_t>{10, 20, 20, 40, 50, 60, 60, 80, 90, 100, 110, 120});
}

TEST_CASE("Clocks that disagree are clamped, and the phases still add up") {
  SECTION("the operator's clock is ahead of the agent's") {
    Moments moments = Full();
    moments.decided_at_us = kT + 35;
    CHECK(Ends(*BuildTimeline(StartPath::kPeer, moments, {})) ==
          std::vector<std::int64_t>{0, 0, 0, 5, 15, 25, 35, 45, 55, 65, 75, 85});
  }
  SECTION("the decision lies after the first token") {
    Moments moments = Full();
    moments.decided_at_us = kT + 1000;
    CHECK(BuildTimeline(StartPath::kPeer, moments, {})->total_us == 0);
  }
  SECTION("the decision is not known") {
    Moments moments = Full();
    moments.decided_at_us = 0;
    const auto timeline = BuildTimeline(StartPath::kPeer, moments, {});
    CHECK(timeline->decided_at_us == kT + 10);
    CHECK(timeline->total_us == 110);
  }
  SECTION("an engine names moments before the decision or after its first token") {
    Moments moments = Full();
    moments.engine_imported_us = 5;
    moments.load_started_us = kT + 1'000'000;
    CHECK(Ends(*BuildTimeline(StartPath::kPeer, moments, {})) ==
          std::vector<std::int64_t>{10, 20, 20, 40, 120, 120, 120, 120, 120, 120, 120, 120});
  }
}

TEST_CASE("Whatever the moments are, what is built passes the strict decoder") {
  std::mt19937_64 random(1);
  for (int round = 0; round < 2000; ++round) {
    const auto moment = [&]() -> std::optional<std::int64_t> {
      if (random() % 4 == 0) return std::nullopt;
      return kT + static_cast<std::int64_t>(random() % 2000) - 1000;
    };
    Moments moments;
    moments.decided_at_us = moment().value_or(0);
    moments.agent_started_us = moment().value_or(kT);
    moments.engine_may_start_us = moment();
    moments.engine_imported_us = moment();
    moments.worker_started_us = moment();
    moments.load_started_us = moment();
    moments.model_built_us = moment();
    moments.weights_loaded_us = moment();
    moments.weights_processed_us = moment();
    moments.model_ready_us = moment();
    moments.compiled_us = moment();
    moments.profiled_us = moment();
    moments.kv_cache_ready_us = moment();
    moments.captured_us = moment();
    moments.engine_healthy_us = moment();
    moments.first_token_us = moment().value_or(kT);
    const auto timeline = BuildTimeline(StartPath::kStorage, moments,
                                        {{"Digest", moment().value_or(kT), moment().value_or(kT)}});
    REQUIRE(timeline.has_value());
    const auto decoded = TimelineFromJson(ToJson(*timeline), "timeline");
    INFO(decoded.status().ToString());
    REQUIRE(decoded.ok());
    REQUIRE(*decoded == *timeline);
  }
}
