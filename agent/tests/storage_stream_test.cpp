// A checkpoint read through a few slots, with a consumer beside it.

#include <unistd.h>

#include <catch2/catch.hpp>
#include <cstring>
#include <filesystem>
#include <map>
#include <thread>

#include "agent/storage/reader.h"
#include "agent/storage/stream_ring.h"
#include "agent/tests/storage_fixture.h"
#include "agent/tests/storage_sinks.h"

namespace rouse::storage {
namespace {

using Catch::Contains;
using std::chrono::milliseconds;
using test::Folder;
using test::MakeShard;
using test::TestTensor;

const StreamLimits kSmall{
    .min_slot_bytes = 8192, .max_slot_bytes = 32768, .request_bytes = 4096, .slots = 3};

struct Stream {
  explicit Stream(const Folder& folder, const StreamLimits& limits = kSmall)
      : files(*CheckpointFiles::Open(folder.path(), {})),
        plan(*PlanStream(files.checkpoint(), limits)) {
    auto created = StreamRing::Create(plan, memory::HostMemory(), [this] { ++batches_ready; });
    REQUIRE(created.ok());
    ring = *std::move(created);
  }

  // Reads on a thread of its own.
  void Start(std::unique_ptr<ReadQueue> queue = nullptr) {
    thread = std::jthread([this, queue = std::move(queue)]() mutable {
      result = queue ? ReadCheckpoint(files, plan.reads, *ring, std::move(queue), options,
                                      stop.get_token(), {})
                     : ReadCheckpoint(files, plan.reads, *ring, options, stop.get_token(), {});
      done = true;
    });
  }

  bool AwaitBatch(std::size_t index) {
    while (!ring->Ready(index)) {
      if (done && !ring->Ready(index)) return false;
      std::this_thread::sleep_for(milliseconds(1));
    }
    return true;
  }

  /// Takes a batch's tensors; they may come in parts.
  void Take(std::size_t index, std::map<std::string, std::string>& contents) {
    const StreamBatch& batch = plan.batches[index];
    const auto slot = ring->slots().SlabSpan(index % plan.slots);
    for (const StreamPiece& piece : batch.pieces) {
      const FileTensor& tensor =
          files.checkpoint().shards[batch.shard].header.tensors[piece.tensor];
      contents[tensor.name].append(reinterpret_cast<const char*>(slot.data()) + piece.slot_offset,
                                   piece.bytes);
    }
    std::memset(slot.data(), 0xee, slot.size());  // Nobody is served what was there before.
    ring->Free(index + 1);
  }

  /// Takes everything, until the reader has ended: each tensor's content.
  std::map<std::string, std::string> TakeAll() {
    std::map<std::string, std::string> contents;
    for (std::size_t i = 0; i < plan.batches.size(); ++i) {
      REQUIRE(AwaitBatch(i));
      Take(i, contents);
    }
    thread.join();
    REQUIRE(result.ok());
    return contents;
  }

  CheckpointFiles files;
  StreamPlan plan;
  std::atomic<std::size_t> batches_ready{0};
  std::unique_ptr<StreamRing> ring;
  ReadOptions options{.reads_in_flight = 8, .sink_sets_pace = true};
  std::stop_source stop;
  std::atomic<bool> done{false};
  Result<ReadReport> result = Internal("not read");
  std::jthread thread;
};

TEST_CASE("a checkpoint that is far larger than the slots arrives whole", "[storage]") {
  const bool use_io_uring = GENERATE(true, false);
  const std::size_t alignment = GENERATE(1, 8, 4096);
  const Folder folder(GENERATE("/tmp", "/dev/shm"));
  std::mt19937_64 random(alignment);
  std::map<std::string, std::string> expected;
  for (const char* file : {"a", "b", "c"}) {
    auto tensors = test::RandomTensors(12, file, random);
    tensors.push_back({.name = std::string(file) + ".large",
                       .dtype = "U8",
                       .shape = {100'000},
                       .content = test::RandomBytes(100'000, random)});
    for (const TestTensor& tensor : tensors) expected[tensor.name] = tensor.content;
    folder.Write(std::string(file) + ".safetensors", MakeShard(tensors, alignment));
  }
  Stream stream(folder);
  stream.options.use_io_uring = use_io_uring;
  REQUIRE(stream.plan.batches.size() > 9);
  stream.Start();
  REQUIRE(stream.TakeAll() == expected);
  REQUIRE(stream.ring->bytes_read() == stream.plan.reads.read_bytes());
  REQUIRE_FALSE(stream.ring->Ready(stream.plan.batches.size()));
}

TEST_CASE("nothing is read over a slot that is in use, however long that is", "[storage]") {
  // Not on a disk: one that others keep busy can take longer than the deadline.
  const Folder folder("/dev/shm");
  folder.Write("model.safetensors", MakeShard({{"x", "U8", {300'000}, std::string(300'000, 'x')}}));
  Stream stream(folder);
  // Time that passes because nobody takes what is there is not the storage's.
  stream.options.progress_deadline = milliseconds(1'000);
  stream.Start();
  REQUIRE(stream.AwaitBatch(2));
  std::this_thread::sleep_for(milliseconds(2'500));
  REQUIRE_FALSE(stream.done);
  REQUIRE_FALSE(stream.ring->Ready(3));
  REQUIRE(stream.batches_ready == 3);
  stream.ring->Free(1);
  REQUIRE(stream.AwaitBatch(3));
  stream.ring->Free(0);  // Takes nothing back.
  std::this_thread::sleep_for(milliseconds(20));
  REQUIRE_FALSE(stream.ring->Ready(4));
  stream.stop.request_stop();
  stream.thread.join();
  REQUIRE(stream.result.status().code() == StatusCode::kCancelled);
}

TEST_CASE("a file that is cut off while it streams is an error", "[storage]") {
  const Folder folder;
  folder.Write("model.safetensors", MakeShard({{"x", "U8", {300'000}, std::string(300'000, 'x')}}));
  Stream stream(folder);
  stream.Start();
  REQUIRE(stream.AwaitBatch(0));
  std::filesystem::resize_file(folder.path() / "model.safetensors", 150'000);
  std::map<std::string, std::string> contents;
  for (std::size_t i = 0; stream.AwaitBatch(i); ++i) stream.Take(i, contents);
  stream.thread.join();
  REQUIRE(stream.result.status().code() == StatusCode::kDataLoss);
  REQUIRE_THAT(stream.result.status().message(), Contains("model.safetensors"));
}

TEST_CASE("a disk that fails is an error, one that only stutters is not", "[storage]") {
  const Folder folder;
  folder.Write("model.safetensors", MakeShard({{"x", "U8", {300'000}, std::string(300'000, 'x')}}));
  Stream stream(folder);
  SECTION("input/output error") {
    stream.Start(std::make_unique<test::FaultyQueue>(1, EIO));
    stream.thread.join();
    REQUIRE_FALSE(stream.result.ok());
    REQUIRE_THAT(stream.result.status().message(), Contains("read model.safetensors"));
    REQUIRE(stream.ring->bytes_read() == 0);
  }
  SECTION("short reads, interrupts, refused direct reads") {
    stream.Start(std::make_unique<test::FaultyQueue>(5));
    REQUIRE(stream.TakeAll().at("x") == std::string(300'000, 'x'));
  }
}

TEST_CASE("slots cannot be changed by whoever has their descriptor", "[storage]") {
  const Folder folder;
  folder.Write("model.safetensors", MakeShard({{"x", "U8", {9}, "123456789"}}));
  const Stream stream(folder);
  REQUIRE(stream.ring->slots().sealed());
  REQUIRE(::pwrite(stream.ring->slots().slab(0).fd(), "x", 1, 0) < 0);
}

}  // namespace
}  // namespace rouse::storage
