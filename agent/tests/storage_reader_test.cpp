#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>

#include "agent/storage/host_sink.h"
#include "agent/storage/reader.h"
#include "agent/tests/storage_fixture.h"
#include "agent/tests/storage_sinks.h"

namespace rouse::storage {
namespace {

using Catch::Contains;
using test::Folder;
using test::MakeShard;
using test::TestTensor;

constexpr std::uint64_t kRequest = 16384;

std::unique_ptr<memory::Arena> MakeArena(std::uint64_t bytes) {
  auto arena = memory::Arena::Create({.bytes = bytes, .slab_bytes = 65536, .name = "test"});
  REQUIRE(arena.ok());
  // What a read leaves alone would show.
  std::memset((*arena)->span().data(), 0xee, bytes);
  return *std::move(arena);
}

CheckpointFiles Open(const Folder& folder) {
  auto files = CheckpointFiles::Open(folder.path(), {});
  INFO(files.status().ToString());
  REQUIRE(files.ok());
  return *std::move(files);
}

using Contents = std::map<std::string, std::string>;  // of tensors, by name

Contents ContentsOf(const std::vector<TestTensor>& tensors) {
  Contents out;
  for (const TestTensor& tensor : tensors) out[tensor.name] = tensor.content;
  return out;
}

// Every tensor at its place, the header's tail before it, and zeros up to the next block.
void CheckArena(const CheckpointFiles& files, const ReadPlan& plan, const memory::Arena& arena,
                const Contents& contents) {
  const auto* base = reinterpret_cast<const char*>(arena.span().data());
  std::size_t found = 0;
  for (std::size_t i = 0; i < plan.shards.size(); ++i) {
    const ShardPlace& place = plan.shards[i];
    const ShardHeader& header = files.checkpoint().shards[i].header;
    const char* data = base + place.arena_offset + (header.data_offset - place.file_offset);
    for (const FileTensor& tensor : header.tensors) {
      const std::string_view bytes(data + tensor.begin, tensor.end - tensor.begin);
      REQUIRE((bytes == contents.at(tensor.name)));
      ++found;
    }
    const std::uint64_t end = place.arena_offset + place.bytes;
    REQUIRE(std::all_of(base + end, base + (end + 4095) / 4096 * 4096,
                        [](char byte) { return byte == 0; }));
  }
  REQUIRE(found == contents.size());
}

TEST_CASE("random checkpoints arrive with every byte in its place, by both ways", "[storage]") {
  const auto parent =
      GENERATE(std::filesystem::temp_directory_path(), std::filesystem::path("/dev/shm"));
  const bool use_io_uring = GENERATE(true, false);
  const std::uint64_t seed = GENERATE(range(1, 11));
  CAPTURE(parent, use_io_uring, seed);
  std::mt19937_64 random(seed);

  const Folder folder(parent);
  std::vector<TestTensor> all;
  const std::size_t shards = 1 + random() % 4;
  for (std::size_t i = 0; i < shards; ++i) {
    auto tensors = test::RandomTensors(1 + random() % 20, "s" + std::to_string(i), random);
    tensors.push_back(
        {"big" + std::to_string(i), "U8", {200'000}, test::RandomBytes(200'000, random)});
    folder.Write("model-" + std::to_string(i) + ".safetensors",
                 MakeShard(tensors, random() % 3 == 0 ? 1 : 8));
    all.insert(all.end(), tensors.begin(), tensors.end());
  }
  const CheckpointFiles files = Open(folder);
  const ReadPlan plan = *PlanReads(files.checkpoint(), 4096 * (1 + random() % 16));
  const auto arena = MakeArena(plan.arena_bytes);
  HostSink sink(*arena);
  ReadProgress last;
  const auto report =
      ReadCheckpoint(files, plan, sink,
                     {.reads_in_flight = static_cast<std::uint32_t>(1 + random() % 8),
                      .threads = 3,
                      .use_io_uring = use_io_uring},
                     {}, [&](const ReadProgress& progress) { last = progress; });
  INFO(report.status().ToString());
  REQUIRE(report.ok());
  CheckArena(files, plan, *arena, ContentsOf(all));
  REQUIRE(report->bytes == plan.read_bytes());
  REQUIRE(last.bytes_read == last.bytes_total);
  if (!use_io_uring) REQUIRE(report->way == "threads");
  REQUIRE(report->reason.empty() == (report->way == "io_uring"));
  if (parent == "/dev/shm") REQUIRE(report->bytes_direct == 0);
  std::uint64_t direct = 0;
  for (const Read& read : plan.reads) {
    if (plan.shards[read.shard].direct && files.direct_fd(read.shard) >= 0) direct += read.bytes;
  }
  REQUIRE(report->bytes_direct == direct);
}

TEST_CASE("staging memory bounds what is under way, and fills the same arena", "[storage]") {
  std::mt19937_64 random(3);
  const Folder folder;
  const auto tensors = test::RandomTensors(20, "t", random);
  folder.Write("model.safetensors", MakeShard(tensors));
  const CheckpointFiles files = Open(folder);
  const ReadPlan plan = *PlanReads(files.checkpoint(), 4096);
  const auto arena = MakeArena(plan.arena_bytes);
  test::StagingSink sink(*arena, 3, 4096);
  REQUIRE(ReadCheckpoint(files, plan, sink, {.reads_in_flight = 8}, {}, {}).ok());
  CheckArena(files, plan, *arena, ContentsOf(tensors));
  REQUIRE(sink.free() == 3);
}

TEST_CASE("short, interrupted and refused reads are repeated", "[storage]") {
  std::mt19937_64 random(5);
  const Folder folder;
  const std::vector<TestTensor> tensors = {
      {"x", "U8", {300'000}, test::RandomBytes(300'000, random)}};
  folder.Write("model.safetensors", MakeShard(tensors));
  const CheckpointFiles files = Open(folder);
  const ReadPlan plan = *PlanReads(files.checkpoint(), kRequest);
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    const auto arena = MakeArena(plan.arena_bytes);
    HostSink sink(*arena);
    const auto report =
        ReadCheckpoint(files, plan, sink, std::make_unique<test::FaultyQueue>(seed), {}, {}, {});
    INFO(report.status().ToString());
    REQUIRE(report.ok());
    REQUIRE(report->reads > plan.reads.size());
    CheckArena(files, plan, *arena, ContentsOf(tensors));
  }
}

TEST_CASE("an error of the storage ends the reading and names the file", "[storage]") {
  const Folder folder;
  folder.Write("model.safetensors", MakeShard({{"x", "U8", {90'000}, std::string(90'000, 'x')}}));
  const CheckpointFiles files = Open(folder);
  const ReadPlan plan = *PlanReads(files.checkpoint(), kRequest);
  const auto arena = MakeArena(plan.arena_bytes);
  for (const int error : {EIO, EAGAIN}) {
    test::WatchedSink sink(*arena);
    const auto report = ReadCheckpoint(files, plan, sink,
                                       std::make_unique<test::FaultyQueue>(1, error), {}, {}, {});
    REQUIRE_FALSE(report.ok());
    REQUIRE_THAT(report.status().message(), Contains("read model.safetensors at "));
    REQUIRE(sink.lent() == 0);
  }
}

TEST_CASE("a file that becomes shorter or changes while it is read is an error", "[storage]") {
  const bool use_io_uring = GENERATE(true, false);
  const Folder folder;
  folder.Write("model.safetensors", MakeShard({{"x", "U8", {900'000}, std::string(900'000, 'x')}}));
  const CheckpointFiles files = Open(folder);
  const ReadPlan plan = *PlanReads(files.checkpoint(), kRequest);
  const auto arena = MakeArena(plan.arena_bytes);
  test::WatchedSink sink(*arena);
  const auto read = [&] {
    return ReadCheckpoint(files, plan, sink, {.reads_in_flight = 4, .use_io_uring = use_io_uring},
                          {}, {});
  };
  const auto path = folder.path() / "model.safetensors";
  SECTION("cut") {
    sink.on_filled = [&] { std::filesystem::resize_file(path, 700'000); };
    const auto report = read();
    REQUIRE(report.status().code() == StatusCode::kDataLoss);
    REQUIRE_THAT(report.status().message(),
                 Contains("model.safetensors: became shorter while it was read"));
  }
  SECTION("grown") {
    sink.on_filled = [&] { std::filesystem::resize_file(path, 1'000'000); };
    REQUIRE_THAT(read().status().message(), Contains("model.safetensors: changed while"));
  }
  SECTION("overwritten") {
    sink.on_filled = [&] { std::ofstream(path, std::ios::in | std::ios::out) << "x"; };
    REQUIRE_THAT(read().status().message(), Contains("changed while"));
  }
  REQUIRE(sink.lent() == 0);
}

TEST_CASE("a stop ends the reading with all memory given back", "[storage]") {
  const bool use_io_uring = GENERATE(true, false);
  const Folder folder;
  folder.Write("model.safetensors", MakeShard({{"x", "U8", {900'000}, std::string(900'000, 'x')}}));
  const CheckpointFiles files = Open(folder);
  const ReadPlan plan = *PlanReads(files.checkpoint(), 4096);
  const auto arena = MakeArena(plan.arena_bytes);
  test::WatchedSink sink(*arena);
  std::stop_source stop;
  sink.on_filled = [&] { stop.request_stop(); };
  const auto report =
      ReadCheckpoint(files, plan, sink, {.reads_in_flight = 8, .use_io_uring = use_io_uring},
                     stop.get_token(), {});
  REQUIRE(report.status().code() == StatusCode::kCancelled);
  REQUIRE_THAT(report.status().message(), Contains("bytes had arrived"));
  REQUIRE(sink.lent() == 0);
  REQUIRE(sink.flushed);
  REQUIRE(CheckpointFiles::Open(folder.path(), stop.get_token()).status().code() ==
          StatusCode::kCancelled);
}

TEST_CASE("deadlines hold for all of it and for the time without an arrival", "[storage]") {
  const Folder folder;
  folder.Write("model.safetensors", MakeShard({{"x", "U8", {9000}, std::string(9000, 'x')}}));
  const CheckpointFiles files = Open(folder);
  const ReadPlan plan = *PlanReads(files.checkpoint(), 4096);
  const auto arena = MakeArena(plan.arena_bytes);
  test::StagingSink full(*arena, 0, 4096);
  const auto whole =
      ReadCheckpoint(files, plan, full, {.deadline = std::chrono::milliseconds(30)}, {}, {});
  REQUIRE(whole.status().code() == StatusCode::kDeadlineExceeded);
  REQUIRE_THAT(whole.status().message(), Contains("after 30 ms"));
  const auto idle = ReadCheckpoint(files, plan, full,
                                   {.progress_deadline = std::chrono::milliseconds(30)}, {}, {});
  REQUIRE(idle.status().code() == StatusCode::kDeadlineExceeded);
  REQUIRE_THAT(idle.status().message(), Contains("none for 30 ms"));
}

TEST_CASE("an arena of another size is refused", "[storage]") {
  const Folder folder;
  folder.Write("model.safetensors", MakeShard({{"x", "U8", {9}, "123456789"}}));
  const CheckpointFiles files = Open(folder);
  const auto arena = MakeArena(12288);
  HostSink sink(*arena);
  REQUIRE(ReadCheckpoint(files, *PlanReads(files.checkpoint()), sink, {}, {}, {}).status().code() ==
          StatusCode::kInvalidArgument);
}

TEST_CASE("folders that hold no good checkpoint are refused with what is wrong", "[storage]") {
  const Folder folder;
  const auto error = [&] {
    const auto files = CheckpointFiles::Open(folder.path(), {});
    REQUIRE_FALSE(files.ok());
    return files.status().message();
  };
  REQUIRE(CheckpointFiles::Open(folder.path() / "none", {}).status().code() ==
          StatusCode::kNotFound);
  REQUIRE_THAT(error(), Contains("there is no safetensors file"));
  const std::string good = MakeShard({{"x", "U8", {9}, "123456789"}});
  SECTION("a file that was cut off") {
    folder.Write("model.safetensors", good.substr(0, good.size() - 1));
    REQUIRE_THAT(error(), Contains("model.safetensors: ") && Contains("\"x\" is cut off"));
  }
  SECTION("an empty file") {
    folder.Write("model.safetensors", "");
    REQUIRE_THAT(error(), Contains("has 0 bytes"));
  }
  SECTION("a pipe") {
    REQUIRE(::mkfifo((folder.path() / "model.safetensors").c_str(), 0600) == 0);
    REQUIRE_THAT(error(), Contains("no regular file"));
  }
  SECTION("an index that names a missing file") {
    folder.Write("model.safetensors.index.json", R"({"weight_map":{"x":"a.safetensors"}})");
    folder.Write("model.safetensors", good);
    REQUIRE_THAT(error(), Contains("there is no file a.safetensors"));
  }
  SECTION("one tensor in two files") {
    folder.Write("a.safetensors", good);
    folder.Write("b.safetensors", good);
    REQUIRE_THAT(error(), Contains("a.safetensors and in b.safetensors"));
  }
  SECTION("an index keeps files out that it does not name") {
    folder.Write("a.safetensors", good);
    folder.Write("consolidated.safetensors", good);
    folder.Write("model.safetensors.index.json", R"({"weight_map":{"x":"a.safetensors"}})");
    REQUIRE(Open(folder).checkpoint().shards.size() == 1);
  }
}

TEST_CASE("where io_uring is forbidden threads read, and the report says why", "[storage]") {
  const int error = GENERATE(EPERM, ENOSYS);
  std::mt19937_64 random(9);
  const Folder folder;
  const auto tensors = test::RandomTensors(10, "t", random);
  folder.Write("model.safetensors", MakeShard(tensors));
  const CheckpointFiles files = Open(folder);
  const ReadPlan plan = *PlanReads(files.checkpoint(), kRequest);
  const auto arena = MakeArena(plan.arena_bytes);
  HostSink sink(*arena);
  const auto report =
      test::WithoutIoUring(error, [&] { return ReadCheckpoint(files, plan, sink, {}, {}, {}); });
  REQUIRE(report.ok());
  REQUIRE(report->way == "threads");
  REQUIRE_THAT(report->reason, Contains("io_uring cannot be used") && Contains(strerror(error)));
  CheckArena(files, plan, *arena, ContentsOf(tensors));
}

}  // namespace
}  // namespace rouse::storage
