// Weights in GPU memory read from another node: a real source process and real UCX, with memory of
// the host in the GPUs' place.

#include <catch2/catch.hpp>
#include <fstream>
#include <thread>

#include "agent/tests/fake_gpu.h"
#include "agent/tests/paths.h"
#include "agent/tests/transfer_fixture.h"
#include "agent/transfer/publisher.h"
#include "agent/transfer/staged_pull.h"

namespace rouse::transfer {
namespace {

using std::chrono::milliseconds;
using namespace testing;

constexpr std::uint64_t kStagedChunk = 256u << 10;
constexpr std::uint64_t kStage = 1 * kMiB;
constexpr std::uint64_t kStagedBytes =
    7 * kMiB + 300'001;  // No whole number of chunks, or of buffers.

struct StagingSource {
  explicit StagingSource(PublisherOptions options = {}) {
    options.program = kTransferPeerProgram;
    options.stage_bytes = kStage;
    publisher = Must(Publisher::Create(options));
    Must(publisher->Publish(arena, ManifestOf(*arena, 0, kStagedChunk)));
  }
  StagedSource Open() const {
    const OpenResponse opened = Must(publisher->Open("test/target"));
    return {.name = "test/source",
            .worker_address = opened.worker_address,
            .lease = opened.lease,
            .rank = opened.ranks.at(0)};
  }
  AskToStage Ask() const {
    return [this](const StageRequest& request) { return publisher->Stage(request); };
  }

  std::shared_ptr<memory::Arena> arena =
      RandomArena(kStagedBytes, 4 * kMiB, 5, std::make_shared<FakeGpuMemory>());
  std::unique_ptr<Publisher> publisher;
};

struct StagedTarget {
  Result<PullReport> Pull(const StagedSource& source, const AskToStage& ask) {
    return PullStaged(source, context, *arena, ask, options, stop.get_token());
  }

  std::shared_ptr<ucx::Context> context = Must(ucx::Context::Create());
  std::shared_ptr<memory::Arena> arena =
      Must(memory::Arena::Create({.bytes = kStagedBytes,
                                  .memory = std::make_shared<FakeGpuMemory>(),
                                  .slab_bytes = 2 * kMiB,
                                  .name = "target"}));
  PullOptions options;
  std::stop_source stop;
};

/// Mappings of staging buffers in this process.
std::size_t StageMappings() {
  std::ifstream maps("/proc/self/maps");
  std::size_t count = 0;
  for (std::string line; std::getline(maps, line);) {
    count += line.find("rouse-stage") != std::string::npos ? 1 : 0;
  }
  return count;
}

TEST_CASE("GPU memory is read through two buffers, whatever its size", "[transfer][staged]") {
  const StagingSource source;
  StagedTarget target;
  target.options.piece_bytes = GENERATE(100'000, 1'000'000);
  std::vector<StageRequest> requests;
  const auto ask = [&](const StageRequest& request) {
    requests.push_back(request);
    return source.publisher->Stage(request);
  };
  const PullReport report = Must(target.Pull(source.Open(), ask));
  CHECK(SameBytes(*source.arena, *target.arena));
  CHECK(report.counters.bytes_verified == kStagedBytes);
  CHECK(report.counters.bytes_arrived == kStagedBytes);
  CHECK(report.counters.chunks_verified == report.counters.chunks_total);
  CHECK_FALSE(report.transport.empty());
  std::uint64_t at = 0;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    CHECK(requests[i].offset == at);
    CHECK(requests[i].bytes <= kStage);
    CHECK(requests[i].buffer == i % kStageBuffers);
    at += requests[i].bytes;
  }
  CHECK(at == kStagedBytes);
}

TEST_CASE("a chunk that is not what its digest says fails the pull and is named",
          "[transfer][staged]") {
  const StagingSource source;
  StagedTarget target;
  source.arena->span()[3 * kStagedChunk + 17] ^= std::byte{1};
  const auto pulled = target.Pull(source.Open(), source.Ask());
  CHECK(pulled.status().code() == StatusCode::kDataLoss);
  CHECK_THAT(pulled.status().message(),
             Catch::Contains("test/source") && Catch::Contains("chunk 3 of rank 0"));
}

TEST_CASE("what goes wrong at the source ends the pull with its reason", "[transfer][staged]") {
  StagingSource source;
  StagedTarget target;
  const StagedSource opened = source.Open();
  int asked = 0;
  SECTION("the lease has ended") {
    const auto ask = [&](const StageRequest& request) {
      if (++asked == 3) Must(source.publisher->Close(opened.lease));
      return source.publisher->Stage(request);
    };
    // What is read at that moment is gone too.
    const StatusCode code = target.Pull(opened, ask).status().code();
    CHECK((code == StatusCode::kNotFound || code == StatusCode::kUnavailable));
  }
  SECTION("the source is gone") {
    const auto ask = [&](const StageRequest& request) {
      auto staged = source.publisher->Stage(request);
      if (++asked == 2) source.publisher.reset();
      return staged;
    };
    target.options.progress_deadline = milliseconds(2'000);
    const auto pulled = target.Pull(opened, [&](const StageRequest& request) {
      return source.publisher ? ask(request)
                              : Result<RemoteSlab>(Unavailable("connection refused"));
    });
    const StatusCode code = pulled.status().code();
    CHECK((code == StatusCode::kUnavailable || code == StatusCode::kDeadlineExceeded));
  }
  SECTION("it answers with another length") {
    const auto ask = [&](const StageRequest& request) {
      auto staged = source.publisher->Stage(request);
      staged->bytes -= 1;
      return staged;
    };
    CHECK(target.Pull(opened, ask).status().code() == StatusCode::kInvalidArgument);
  }
  SECTION("it answers with a key that is none") {
    const auto ask = [&](const StageRequest& request) {
      auto staged = source.publisher->Stage(request);
      staged->rkey = "k";
      return staged;
    };
    CHECK(target.Pull(opened, ask).status().code() == StatusCode::kInvalidArgument);
  }
  SECTION("it does not answer in time") {
    target.options.progress_deadline = milliseconds(100);
    const auto ask = [&](const StageRequest& request) {
      if (++asked == 2) std::this_thread::sleep_for(milliseconds(500));
      return source.publisher->Stage(request);
    };
    const auto pulled = target.Pull(opened, ask);
    CHECK(pulled.status().code() == StatusCode::kDeadlineExceeded);
  }
  SECTION("the target is stopped") {
    const auto ask = [&](const StageRequest& request) {
      if (++asked == 2) target.stop.request_stop();
      return source.publisher->Stage(request);
    };
    CHECK(target.Pull(opened, ask).status().code() == StatusCode::kCancelled);
  }
  CHECK(asked <= 3);
}

TEST_CASE("a source copies what a lease may have, and nothing else", "[transfer][staged]") {
  StagingSource source;
  const auto code = [&](const StageRequest& request) {
    return source.publisher->Stage(request).status().code();
  };
  const StageRequest good = {
      .lease = source.Open().lease, .rank = 0, .buffer = 1, .offset = kMiB, .bytes = kMiB};
  CHECK(code(good) == StatusCode::kOk);
  const auto with = [&](auto change) {
    StageRequest request = good;
    change(request);
    return code(request);
  };
  CHECK(with([](auto& r) { r.lease = "guessed"; }) == StatusCode::kNotFound);
  CHECK(with([](auto& r) { r.rank = 1; }) == StatusCode::kNotFound);
  CHECK(with([](auto& r) { r.buffer = kStageBuffers; }) == StatusCode::kInvalidArgument);
  CHECK(with([](auto& r) { r.bytes = 0; }) == StatusCode::kInvalidArgument);
  CHECK(with([](auto& r) { r.bytes = kStage + 1; }) == StatusCode::kInvalidArgument);
  CHECK(with([](auto& r) { r.offset = kStagedBytes - r.bytes + 1; }) ==
        StatusCode::kInvalidArgument);
  CHECK(with([](auto& r) { r.offset = ~std::uint64_t{0}; }) == StatusCode::kInvalidArgument);
  const auto host = RandomArena(kMiB, kMiB, 1);
  Must(source.publisher->Publish(host, ManifestOf(*host, 1, kStagedChunk)));
  CHECK(with([](auto& r) { r.rank = 1; }) == StatusCode::kFailedPrecondition);
}

TEST_CASE("buffers are for few peers at once, go on to the next, and end with the last",
          "[transfer][staged]") {
  StagingSource source({.leases = {}, .max_staged = 2});
  const auto stage = [&](const StagedSource& opened) {
    return source.publisher->Stage({.lease = opened.lease, .bytes = kStagedChunk}).status().code();
  };
  REQUIRE(StageMappings() == 0);
  const StagedSource a = source.Open();
  const StagedSource b = source.Open();
  const StagedSource c = source.Open();
  CHECK(stage(a) == StatusCode::kOk);
  CHECK(stage(b) == StatusCode::kOk);
  CHECK(stage(c) == StatusCode::kResourceExhausted);
  const std::size_t mappings = StageMappings();
  CHECK(mappings > 0);
  Must(source.publisher->Close(a.lease));
  CHECK(stage(c) == StatusCode::kOk);
  CHECK(stage(b) == StatusCode::kOk);
  CHECK(StageMappings() == mappings);
  Must(source.publisher->Close(b.lease));
  Must(source.publisher->Close(c.lease));
  CHECK(StageMappings() == 0);
  // And all of it again.
  source.publisher->Expire();
  StagedTarget target;
  Must(target.Pull(source.Open(), source.Ask()));
  CHECK(SameBytes(*source.arena, *target.arena));
}

}  // namespace
}  // namespace rouse::transfer
