#include "agent/startup/engine_load.h"

#include <catch2/catch.hpp>
#include <string>

using namespace rouse;
using namespace rouse::agent;
using namespace std::chrono_literals;

namespace {

// As vLLM 0.26 prints it, with two engine cores.
constexpr char kMetrics[] =
    "# HELP vllm:num_requests_running Number of requests in model execution batches.\n"
    "# TYPE vllm:num_requests_running gauge\n"
    "vllm:num_requests_running{engine=\"0\",model_name=\"m\"} 3.0\n"
    "vllm:num_requests_running{engine=\"1\",model_name=\"m\"} 4.0\n"
    "# TYPE vllm:num_requests_waiting gauge\n"
    "vllm:num_requests_waiting{engine=\"0\",model_name=\"m\"} 0.0\n"
    "vllm:num_requests_waiting{engine=\"1\",model_name=\"m\"} 2.0\n"
    "vllm:num_requests_waiting_by_reason{engine=\"1\",reason=\"capacity\"} 2.0\n";

std::string Refused(const std::string& text) {
  return LoadFromMetrics(text).status().message();
}

EngineLoad Load(std::uint64_t running, std::uint64_t waiting) {
  return {.running = running, .waiting = waiting};
}

}  // namespace

TEST_CASE("an engine's load is the sum over its cores") {
  const auto load = LoadFromMetrics(kMetrics);
  REQUIRE(load.ok());
  CHECK(*load == Load(7, 2));
}

TEST_CASE("the last line needs no end, and lines may end as HTTP's do") {
  const std::string text = "vllm:num_requests_running{} 1\r\nvllm:num_requests_waiting{} 0";
  REQUIRE(LoadFromMetrics(text).ok());
  CHECK(*LoadFromMetrics(text) == Load(1, 0));
}

TEST_CASE("metrics that do not tell the load are no load of 0") {
  CHECK_THAT(Refused(""), Catch::Contains("lack"));
  CHECK_THAT(Refused("vllm:num_requests_running{} 1\n"), Catch::Contains("lack"));
  CHECK_THAT(Refused("vllm:num_requests_waiting{} 1\n"), Catch::Contains("lack"));
  for (const char* value : {"NaN", "-1", "+Inf", "1e300", "", "x", "1.0x"}) {
    const std::string line = std::string("vllm:num_requests_running{} ") + value;
    CHECK_THAT(Refused(line + "\nvllm:num_requests_waiting{} 0\n"), Catch::Contains(line));
  }
  std::string many = "vllm:num_requests_waiting{} 0\n";
  for (int i = 0; i < 3; ++i) many += "vllm:num_requests_running{} 9e8\n";
  CHECK_THAT(Refused(many), Catch::Contains("more requests"));
}

TEST_CASE("that load appears, or begins to wait, is told at once") {
  CHECK(IsNews(std::nullopt, Load(0, 0), 0ms));
  CHECK(IsNews(Load(0, 0), Load(1, 0), 0ms));
  CHECK(IsNews(Load(0, 0), Load(0, 1), 0ms));
  CHECK(IsNews(Load(200, 0), Load(200, 1), 0ms));
}

TEST_CASE("other changes are told when they are large, and not too often") {
  CHECK_FALSE(IsNews(Load(10, 5), Load(10, 5), 1h));
  CHECK_FALSE(IsNews(Load(10, 5), Load(10, 7), 1h));
  CHECK(IsNews(Load(10, 5), Load(10, 8), 2s));
  CHECK_FALSE(IsNews(Load(10, 5), Load(10, 8), 1999ms));
  CHECK(IsNews(Load(10, 5), Load(7, 5), 2s));
  CHECK(IsNews(Load(1, 0), Load(0, 0), 2s));
  CHECK_FALSE(IsNews(Load(1, 0), Load(0, 0), 1999ms));
  CHECK(IsNews(Load(1, 0), std::nullopt, 2s));
  CHECK_FALSE(IsNews(Load(1, 0), std::nullopt, 1999ms));
  CHECK_FALSE(IsNews(std::nullopt, std::nullopt, 1h));
}
