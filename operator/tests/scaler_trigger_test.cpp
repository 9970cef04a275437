#include "operator/scaler/trigger.h"

#include <catch2/catch.hpp>

using namespace rouse;
using namespace rouse::scaler;

namespace {

ScaledObject Object(std::map<std::string, std::string> metadata) {
  metadata.emplace("scalerAddress", "rouse-operator.rouse-system:7481");
  return {.name = "qwen3", .ns = "models", .metadata = std::move(metadata)};
}

std::string Refused(const ScaledObject& object) {
  const auto trigger = TriggerOf(object);
  REQUIRE_FALSE(trigger.ok());
  CHECK(trigger.status().code() == StatusCode::kInvalidArgument);
  return trigger.status().message();
}

}  // namespace

TEST_CASE(
    "a trigger is of the ModelService that has the ScaledObject's name, unless it names one") {
  const auto bare = TriggerOf(Object({{"loadPerReplica", "8"}}));
  REQUIRE(bare.ok());
  CHECK(*bare == Trigger{.key = "models/qwen3", .load_per_replica = 8, .activation = 0});
  const auto named = TriggerOf(Object({{"modelService", "other"},
                                       {"loadPerReplica", "0.5"},
                                       {"activationLoad", "3"},
                                       {"enableTLS", "false"}}));
  REQUIRE(named.ok());
  CHECK(*named == Trigger{.key = "models/other", .load_per_replica = 0.5, .activation = 3});
}

TEST_CASE("a trigger that cannot be meant is refused, with what to write") {
  CHECK_THAT(Refused(Object({})),
             Catch::StartsWith("loadPerReplica: is missing") && Catch::Contains("\"8\""));
  for (const char* text : {"", "0", "-1", "NaN", "inf", "8 ", "eight", "1e10", "0x8", "1e-4"}) {
    CHECK_THAT(Refused(Object({{"loadPerReplica", text}})),
               Catch::StartsWith("loadPerReplica: ") && Catch::Contains(text));
    if (std::string(text) == "0" || std::string(text) == "1e-4") continue;
    CHECK_THAT(Refused(Object({{"loadPerReplica", "8"}, {"activationLoad", text}})),
               Catch::StartsWith("activationLoad: "));
  }
  CHECK_THAT(Refused(Object({{"loadPerReplicas", "8"}})),
             Catch::Contains("\"loadPerReplicas\": unknown") &&
                 Catch::Contains("loadPerReplica or activationLoad"));
  for (const std::string name : {"", "Qwen", "a/b", "a b", "..%2f"}) {
    CHECK_THAT(Refused(Object({{"modelService", name}, {"loadPerReplica", "8"}})),
               Catch::StartsWith("modelService: "));
  }
  ScaledObject nameless = Object({{"loadPerReplica", "8"}});
  nameless.name.clear();
  CHECK_THAT(Refused(nameless), Catch::Contains("ScaledObject's name by default"));
  nameless = Object({{"loadPerReplica", "8"}});
  nameless.ns = "x/y";
  CHECK_THAT(Refused(nameless), Catch::StartsWith("the ScaledObject's namespace"));
}

TEST_CASE("what is refused is shown, but not at any length") {
  CHECK(Refused(Object({{"loadPerReplica", std::string(60'000, '9')}})).size() < 250);
  CHECK(Refused(Object({{std::string(60'000, 'k'), "9"}})).size() < 250);
  CHECK(CheckMetricName(std::string(60'000, 'm')).message().size() < 250);
}

TEST_CASE("there is one metric") {
  CHECK(CheckMetricName("rouse-load").ok());
  CHECK(CheckMetricName("s0-rouse-load").code() == StatusCode::kInvalidArgument);
}
