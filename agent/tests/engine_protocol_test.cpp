#include <catch2/catch.hpp>
#include <random>

#include "agent/engine/protocol.h"

using namespace rouse;
using namespace rouse::agent;

namespace {

const std::string kHello =
    R"({"type":"Hello","protocol":"rouse-engine","version":1,"pid":7,"rank":1,"worldSize":2,)"
    R"("engine":"vllm","engineVersion":"0.26.0","identity":{"model":"m"},"newer":"ignored"})";

std::string Replaced(std::string text, const std::string& from, const std::string& to) {
  const auto at = text.find(from);
  REQUIRE(at != std::string::npos);
  return text.replace(at, from.size(), to);
}

}  // namespace

TEST_CASE("Each request is decoded") {
  const auto hello = DecodeEngineRequest(kHello, 0);
  REQUIRE(hello.ok());
  CHECK(std::get<HelloRequest>(*hello).rank == 1);
  CHECK(std::get<HelloRequest>(*hello).identity.at("model") == "m");
  CHECK(std::get<HelloRequest>(*hello).gpu.empty());
  CHECK(TypeName(*hello) == "Hello");
  const auto on_gpu =
      DecodeEngineRequest(Replaced(kHello, "\"pid\"", "\"gpu\":\"GPU-1\",\"pid\""), 0);
  CHECK(std::get<HelloRequest>(*on_gpu).gpu == "GPU-1");
  CHECK(std::get<HelloRequest>(*hello).spawned.empty());
  const auto spawned =
      DecodeEngineRequest(Replaced(kHello, "\"pid\"", "\"spawned\":\"why\",\"pid\""), 0);
  REQUIRE(spawned.ok());
  CHECK(std::get<HelloRequest>(*spawned).spawned == "why");
  CHECK(std::get<HelloRequest>(*hello).ranks_of_model() == 2);
  const auto drafted = DecodeEngineRequest(Replaced(kHello, "\"pid\"", "\"models\":2,\"pid\""), 0);
  REQUIRE(drafted.ok());
  CHECK(std::get<HelloRequest>(*drafted).ranks_of_model() == 1);
  const auto phase = DecodeEngineRequest(R"({"type":"Phase","name":"ModelReady","atUs":5})", 0);
  CHECK(std::get<PhaseRequest>(*phase).phase == event::EnginePhase::kModelReady);
  const auto await = DecodeEngineRequest(R"({"type":"AwaitWeights","rank":0,"timeoutMs":9})", 0);
  CHECK(std::get<AwaitWeightsRequest>(*await).timeout_ms == 9);
  const auto create = DecodeEngineRequest(R"({"type":"CreateArena","rank":0,"bytes":9})", 0);
  CHECK(std::get<CreateArenaRequest>(*create).bytes == 9);
  const auto slabs = DecodeEngineRequest(R"({"type":"GetSlabs","rank":0,"first":3,"count":64})", 0);
  CHECK(std::get<GetSlabsRequest>(*slabs).count == 64);
  const auto held = DecodeEngineRequest(
      R"({"type":"HeldMemory","protocol":"rouse-engine","version":1,"gpu":"GPU-1"})", 0);
  CHECK(std::get<HeldMemoryRequest>(*held).gpu == "GPU-1");
  CHECK(TypeName(*held) == "HeldMemory");
  const auto publish = DecodeEngineRequest(R"({"type":"Publish","rank":0,"manifestBytes":9})", 1);
  CHECK(std::get<PublishRequest>(*publish).manifest_bytes == 9);
  const auto open = DecodeEngineRequest(
      R"({"type":"OpenStream","rank":1,"folder":"/m","files":[{"name":"a","bytes":5}],"timeoutMs":3})",
      0);
  REQUIRE(open.ok());
  CHECK(std::get<OpenStreamRequest>(*open).folder == "/m");
  CHECK(std::get<OpenStreamRequest>(*open).files == std::vector<CheckpointFile>{{"a", 5}});
  const auto next = DecodeEngineRequest(
      R"({"type":"NextBatch","rank":1,"batch":4,"released":2,"timeoutMs":3})", 0);
  CHECK(std::get<NextBatchRequest>(*next).batch == 4);
  CHECK(std::get<NextBatchRequest>(*next).released == 2);
  const auto close =
      DecodeEngineRequest(R"({"type":"CloseStream","rank":1,"reason":"because"})", 0);
  CHECK(std::get<CloseStreamRequest>(*close).reason == "because");
}

TEST_CASE("What is wrong with a request is named") {
  struct Case {
    std::string text;
    std::size_t fds;
    std::string said;
  };
  const Case cases[] = {
      {"", 0, "engine request"},
      {"[]", 0, "object"},
      {R"({"type":"Nonsense"})", 0, "expected one of Hello, Phase"},
      {R"({"type":"OpenStream","rank":0,"folder":"/m","files":[],"timeoutMs":0})", 0, "files"},
      {R"({"type":"OpenStream","rank":0,"folder":"/m","files":[5],"timeoutMs":0})", 0, "files[0]"},
      {R"({"type":"OpenStream","rank":0,"folder":"/m","files":[{"name":"a","bytes":-1}],"timeoutMs":0})",
       0, "files[0].bytes"},
      {R"({"type":"NextBatch","rank":0,"batch":-1,"released":0,"timeoutMs":0})", 0, "batch"},
      {R"({"type":"NextBatch","rank":0,"batch":0,"released":1e9,"timeoutMs":0})", 0, "released"},
      {R"({"type":"CloseStream","rank":0})", 0, "reason"},
      {R"({"type":7})", 0, "type"},
      {kHello, 1, "came with 1 descriptors, expected 0"},
      {R"({"type":"Publish","rank":0,"manifestBytes":9})", 0,
       "came with 0 descriptors, expected 1"},
      {R"({"type":"Publish","rank":0,"manifestBytes":9})", 2,
       "came with 2 descriptors, expected 1"},
      {R"({"type":"Publish","rank":0,"manifestBytes":99999999999})", 1, "manifestBytes"},
      {Replaced(kHello, "\"version\":1", "\"version\":2"), 0, "rouse-engine 2"},
      {Replaced(kHello, "rouse-engine", "other"), 0, "other 1"},
      {Replaced(kHello, "\"rank\":1", "\"rank\":2"), 0, "rank: 2 is not below worldSize 2"},
      {Replaced(kHello, "\"rank\":1", "\"rank\":-1"), 0, "rank"},
      {Replaced(kHello, "\"worldSize\":2", "\"worldSize\":99999"), 0, "worldSize"},
      {Replaced(kHello, "\"worldSize\":2", "\"models\":3,\"worldSize\":2"), 0, "models"},
      {Replaced(kHello, "\"worldSize\":2", "\"models\":2,\"worldSize\":3"), 0,
       "models: 3 ranks of 2 models"},
      {Replaced(kHello, "{\"model\":\"m\"}", "{\"model\":3}"), 0, "identity.model"},
      {Replaced(kHello, "\"pid\":7,", ""), 0, "pid"},
      {Replaced(kHello, "\"pid\"", "\"gpu\":5,\"pid\""), 0, "gpu"},
      {Replaced(kHello, "\"pid\"", "\"spawned\":5,\"pid\""), 0, "spawned"},
      {Replaced(kHello, "\"pid\"", "\"spawned\":\"" + std::string(4097, 'g') + "\",\"pid\""), 0,
       "spawned"},
      {Replaced(kHello, "\"pid\"", "\"gpu\":\"" + std::string(65, 'g') + "\",\"pid\""), 0, "gpu"},
      {R"({"type":"Phase","name":"Coffee","atUs":5})", 0, "name"},
      {R"({"type":"CreateArena","rank":0,"bytes":0})", 0, "bytes"},
      {R"({"type":"CreateArena","rank":0,"bytes":1e300})", 0, "bytes"},
      {R"({"type":"GetSlabs","rank":0,"first":0,"count":65})", 0, "count"},
      {R"({"type":"GetSlabs","rank":0,"first":0,"count":0})", 0, "count"},
      {R"({"type":"AwaitWeights","rank":0,"timeoutMs":-1})", 0, "timeoutMs"},
  };
  for (const Case& one : cases) {
    const auto decoded = DecodeEngineRequest(one.text, one.fds);
    INFO(one.text << " -> " << decoded.status().ToString());
    REQUIRE_FALSE(decoded.ok());
    CHECK(decoded.status().message().find(one.said) != std::string::npos);
  }
}

TEST_CASE("Answers say whose memory an arena is when it is a GPU's") {
  const ArenaShape shape{.arena_bytes = 5, .slab_bytes = {4, 1}};
  CHECK(ArenaReply(shape) ==
        json::Json({{"type", "Arena"}, {"arenaBytes", 5}, {"slabBytes", {4, 1}}}));
  ArenaShape on_gpu = shape;
  on_gpu.gpu = "GPU-1";
  CHECK(ArenaReply(on_gpu)["gpu"] == "GPU-1");
  CHECK(WeightsReply(on_gpu, 7)["gpu"] == "GPU-1");
  CHECK(WeightsReply(on_gpu, 7)["manifestBytes"] == 7);
  CHECK_FALSE(WeightsReply(shape, 7).contains("gpu"));
}

TEST_CASE("Requests that were damaged anywhere are decoded or refused, never more") {
  std::mt19937 random(3);
  for (int round = 0; round < 20'000; ++round) {
    std::string text = kHello;
    for (unsigned i = 0; i < 1 + random() % 4; ++i) {
      const std::size_t at = random() % text.size();
      if (random() % 2 == 0) {
        text[at] = static_cast<char>(random());
      } else {
        text.erase(at, random() % 8);
      }
      if (text.empty()) break;
    }
    const auto decoded = DecodeEngineRequest(text, random() % 3);
    if (!decoded.ok()) CHECK_FALSE(decoded.status().message().empty());
  }
}
