// A start from storage in which the agent program reads the checkpoint for its engine.

#include <sys/mman.h>

#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "agent/tests/agent_process.h"
#include "agent/tests/fake_engine.h"
#include "agent/tests/fake_operator.h"
#include "agent/tests/storage_fixture.h"

using namespace rouse;
using namespace rouse::agent;
using Catch::Contains;

namespace {

constexpr std::size_t kTensorBytes = 6u << 20;
constexpr std::size_t kTensors = 6;
constexpr std::size_t kStreamArenaBytes = 1u << 20;

std::string TensorBytes(std::size_t i) {
  return TestBytes(kTensorBytes, static_cast<std::uint32_t>(i));
}

void WriteModel(const AgentProcess& agent) {
  std::vector<storage::test::TestTensor> tensors;
  for (std::size_t i = 0; i < kTensors; ++i) {
    tensors.push_back({"t" + std::to_string(i), "U8", {kTensorBytes}, TensorBytes(i)});
  }
  agent.folder().Write("model/model.safetensors", storage::test::MakeShard(tensors));
}

/// An engine that loads from the agent's stream.
class StreamingEngine {
 public:
  explicit StreamingEngine(const AgentProcess& agent)
      : engine_(*FakeEngine::Connect(agent.socket())), folder_(agent.model_dir()) {
    REQUIRE(engine_.Hello(TestIdentity())->body["source"] == "Storage");
    REQUIRE(engine_.Phase("EngineImported")->type() == "Ok");
    REQUIRE(engine_.Phase("LoadStarted")->type() == "Ok");
  }

  FakeEngine& operator*() { return engine_; }
  FakeEngine* operator->() { return &engine_; }

  EngineAnswer Open() {
    const std::string file = "model.safetensors";
    auto answer = engine_.Ask(
        {{"type", "OpenStream"},
         {"rank", 0},
         {"folder", folder_},
         {"files", {{{"name", file}, {"bytes", std::filesystem::file_size(folder_ + "/" + file)}}}},
         {"timeoutMs", 20'000}});
    REQUIRE(answer.ok());
    return *std::move(answer);
  }
  EngineAnswer Next(std::size_t batch) {
    auto answer = engine_.Ask({{"type", "NextBatch"},
                               {"rank", 0},
                               {"batch", batch},
                               {"released", batch},
                               {"timeoutMs", 20'000}});
    REQUIRE(answer.ok());
    return *std::move(answer);
  }
  void Close(const std::string& reason) {
    CHECK(engine_.Ask({{"type", "CloseStream"}, {"rank", 0}, {"reason", reason}})->type() == "Ok");
  }

  /// All tensors, compared with what is in the file.
  void LoadAll() {
    const EngineAnswer stream = Open();
    REQUIRE(stream.type() == "Stream");
    const std::size_t batches = stream.body["batches"];
    const std::size_t slot_bytes = stream.body["slotBytes"];
    CHECK(batches > stream.fds.size());
    std::size_t tensors = 0;
    for (std::size_t i = 0; i < batches; ++i) {
      const EngineAnswer batch = Next(i);
      REQUIRE(batch.type() == "Batch");
      const int fd = stream.fds[batch.body["slot"].get<std::size_t>()].get();
      CHECK(::mmap(nullptr, slot_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED);
      void* const at = ::mmap(nullptr, slot_bytes, PROT_READ, MAP_PRIVATE, fd, 0);
      REQUIRE(at != MAP_FAILED);
      for (const json::Json& piece : batch.body["pieces"]) {
        const std::string_view bytes(static_cast<const char*>(at) + piece["at"].get<std::size_t>(),
                                     piece["bytes"]);
        CHECK(piece["name"] == "t" + std::to_string(tensors));
        CHECK((bytes == TensorBytes(tensors)));
        ++tensors;
      }
      ::munmap(at, slot_bytes);
    }
    CHECK(tensors == kTensors);
    const EngineAnswer end = Next(batches);
    REQUIRE(end.type() == "Batch");
    CHECK(end.body["pieces"].empty());
  }

 private:
  FakeEngine engine_;
  std::string folder_;
};

bool HoldsSlots(const AgentProcess& agent) {
  std::ostringstream maps;
  maps << std::ifstream("/proc/" + std::to_string(agent.pid()) + "/maps").rdbuf();
  return maps.str().find("rouse-stream") != std::string::npos;
}

}  // namespace

TEST_CASE("The agent reads the checkpoint for its engine, and counts what it has really read") {
  FakeOperator fake_operator;
  FakeEngineHttp http_engine;
  http_engine.SetHealthy(true);
  AgentProcess agent("demo-0", fake_operator.url(),
                     {{"ROUSE_ENGINE_URL", http_engine.url()}, {"ROUSE_SERVED_MODEL", "demo"}});
  WriteModel(agent);
  StreamingEngine engine(agent);
  engine.LoadAll();
  engine.Close("");
  CHECK(Eventually([&] { return !HoldsSlots(agent); }));
  REQUIRE(engine->CreateFillPublish(TestIdentity(), 0, TestBytes(kStreamArenaBytes, 1))->type() ==
          "Ok");
  REQUIRE(engine->Phase("ModelReady")->type() == "Ok");
  REQUIRE(fake_operator.WaitForServable("demo-0"));
  REQUIRE(fake_operator.WaitFor("demo-0", [](const AgentReport& report) {
    return report.timeline && report.timeline->lanes.size() == 2;
  }));
  const auto report = fake_operator.Last("demo-0");
  CHECK(report->bytes_by_source.storage >= kTensors * kTensorBytes);
  CHECK(report->bytes_by_source.storage < kTensors * (kTensorBytes + 8192));
  CHECK_THAT(report->transport, Catch::StartsWith("storage/"));
  CHECK(report->transport.find("engine") == std::string::npos);
  CHECK(report->timeline->lanes[0].name == "Read");  // The phases partition the time all the same.
}

TEST_CASE("An engine that dies in the middle of the stream leaves nothing, and may start again") {
  FakeOperator fake_operator;
  AgentProcess agent("demo-0", fake_operator.url(), {});
  WriteModel(agent);
  {
    StreamingEngine engine(agent);
    REQUIRE(engine.Open().type() == "Stream");
    REQUIRE(engine.Next(0).type() == "Batch");
    CHECK(HoldsSlots(agent));
    REQUIRE(
        engine->Send(R"({"type":"NextBatch","rank":0,"batch":1,"released":0,"timeoutMs":60000})")
            .ok());
  }
  CHECK(Eventually([&] { return !HoldsSlots(agent); }));
  StreamingEngine again(agent);
  again.LoadAll();
}

TEST_CASE("An engine that loads by itself is reported with its reason, and counted as before") {
  FakeOperator fake_operator;
  AgentProcess agent("demo-0", fake_operator.url(), {});
  WriteModel(agent);
  StreamingEngine engine(agent);
  const EngineAnswer stream = engine.Open();
  REQUIRE(stream.type() == "Stream");
  engine.Close("cannot take F6_E2M3");
  const auto text = [&] { return fake_operator.Last("demo-0")->transport; };
  REQUIRE(fake_operator.WaitFor("demo-0", [](const AgentReport& report) {
    return report.transport == "storage/engine (cannot take F6_E2M3)";
  }));
  std::filesystem::resize_file(agent.model_dir() + "/model.safetensors", 1000);
  CHECK_THAT(engine.Open().message(), Contains("model.safetensors"));
  REQUIRE(fake_operator.WaitFor("demo-0", [](const AgentReport& report) {
    return report.transport.find("model.safetensors") != std::string::npos;
  }));
  INFO(text());
  const std::uint64_t read = fake_operator.Last("demo-0")->bytes_by_source.storage;
  REQUIRE(engine->CreateFillPublish(TestIdentity(), 0, TestBytes(kStreamArenaBytes, 1))->type() ==
          "Ok");
  REQUIRE(fake_operator.WaitForServable("demo-0"));
  CHECK(fake_operator.Last("demo-0")->bytes_by_source.storage == read + kStreamArenaBytes);
}
