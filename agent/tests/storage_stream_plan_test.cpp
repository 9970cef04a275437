#include <catch2/catch.hpp>
#include <numeric>
#include <random>

#include "agent/storage/stream_plan.h"
#include "agent/tests/storage_fixture.h"
#include "common/json.h"

namespace rouse::storage {
namespace {

constexpr std::uint64_t kSlot = 16384;
const StreamLimits kSmall{.min_slot_bytes = kSlot, .max_slot_bytes = kSlot, .request_bytes = 8192};

// A shard as it would be decoded, with one tensor of each size.
Shard StreamedShard(const std::string& file, std::uint64_t data_offset,
                    const std::vector<std::uint64_t>& sizes, const std::string& prefix = "t") {
  Shard shard{.file = file};
  shard.header.data_offset = data_offset;
  std::uint64_t at = 0;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    shard.header.tensors.push_back({.name = prefix + std::to_string(i),
                                    .dtype = FindDtype("U8"),
                                    .shape = {sizes[i]},
                                    .begin = at,
                                    .end = at + sizes[i]});
    at += sizes[i];
  }
  shard.header.data_bytes = at;
  shard.file_bytes = data_offset + at;
  return shard;
}

// What every plan promises, whatever the checkpoint.
void Check(const Checkpoint& checkpoint, const StreamPlan& plan, const StreamLimits& limits) {
  REQUIRE(plan.slot_bytes % kDirectAlignment == 0);
  REQUIRE(plan.slot_bytes >= limits.min_slot_bytes);
  REQUIRE(plan.slot_bytes <= limits.max_slot_bytes);
  REQUIRE(plan.slots >= 1);
  REQUIRE(plan.slots <= limits.slots);
  // Every byte of every tensor once, in order.
  std::size_t shard = 0, tensor = 0;
  std::uint64_t begin = 0;
  const auto skip_finished = [&] {
    while (shard < checkpoint.shards.size() &&
           tensor == checkpoint.shards[shard].header.tensors.size()) {
      ++shard;
      tensor = 0;
    }
  };
  for (const StreamBatch& batch : plan.batches) {
    REQUIRE_FALSE(batch.pieces.empty());
    REQUIRE(batch.file_offset % kDirectAlignment == 0);
    REQUIRE(batch.bytes <= plan.slot_bytes);
    const Shard& from = checkpoint.shards[batch.shard];
    REQUIRE(batch.file_offset + batch.bytes <= from.file_bytes);
    for (const StreamPiece& piece : batch.pieces) {
      skip_finished();
      REQUIRE(batch.shard == shard);
      REQUIRE(piece.tensor == tensor);
      REQUIRE(piece.begin == begin);
      const FileTensor& of = from.header.tensors[tensor];
      REQUIRE((piece.bytes > 0 || of.begin == of.end));
      REQUIRE(batch.file_offset + piece.slot_offset ==
              from.header.data_offset + of.begin + piece.begin);
      if (piece.bytes > 0) REQUIRE(piece.slot_offset + piece.bytes <= batch.bytes);
      begin += piece.bytes;
      REQUIRE(begin <= of.end - of.begin);
      if (begin == of.end - of.begin) {
        ++tensor;
        begin = 0;
      }
    }
  }
  skip_finished();
  REQUIRE(shard == checkpoint.shards.size());
  // The reads fill exactly the batches, each in its own part of the arena.
  REQUIRE(plan.reads.arena_bytes == plan.batches.size() * plan.slot_bytes);
  std::vector<std::uint64_t> filled(plan.batches.size());
  for (const Read& read : plan.reads.reads) {
    const std::size_t index = read.arena_offset / plan.slot_bytes;
    const StreamBatch& batch = plan.batches[index];
    REQUIRE(read.shard == batch.shard);
    REQUIRE(read.bytes <= limits.request_bytes);
    REQUIRE(read.file_offset % kDirectAlignment == 0);
    REQUIRE(read.arena_offset == index * plan.slot_bytes + filled[index]);
    REQUIRE(read.file_offset == batch.file_offset + filled[index]);
    const bool at_end = read.file_offset + read.bytes == checkpoint.shards[read.shard].file_bytes;
    REQUIRE((at_end || read.bytes % kDirectAlignment == 0));
    filled[index] += read.bytes;
  }
  for (std::size_t i = 0; i < filled.size(); ++i) REQUIRE(filled[i] == plan.batches[i].bytes);
}

TEST_CASE("tensors that follow each other share a batch until the slot is full", "[storage]") {
  const Checkpoint checkpoint{.shards = {StreamedShard("a", 200, {8000, 8000, 8000, 100})}};
  const StreamPlan plan = *PlanStream(checkpoint, kSmall);
  Check(checkpoint, plan, kSmall);
  REQUIRE(plan.batches.size() == 2);
  REQUIRE(plan.batches[0].pieces.size() == 2);
  REQUIRE(plan.batches[0].pieces[0] ==
          StreamPiece{.tensor = 0, .begin = 0, .bytes = 8000, .slot_offset = 200});
  // The third begins in a block that the second ends in: both batches read it.
  REQUIRE(plan.batches[1].file_offset == 12288);
  REQUIRE(plan.batches[1].pieces[0].slot_offset == 16200 - 12288);
  REQUIRE(plan.slots == 2);
}

TEST_CASE("a slot holds the largest tensor, up to a bound beyond which it is cut", "[storage]") {
  const StreamLimits limits{
      .min_slot_bytes = 8192, .max_slot_bytes = 65536, .request_bytes = 8192, .slots = 3};
  SECTION("small ones") {
    const Checkpoint checkpoint{.shards = {StreamedShard("a", 8, {100, 200})}};
    const StreamPlan plan = *PlanStream(checkpoint, limits);
    Check(checkpoint, plan, limits);
    REQUIRE(plan.slot_bytes == 8192);
    REQUIRE(plan.slots == 1);
  }
  SECTION("one that fits wherever it begins") {
    const Checkpoint checkpoint{.shards = {StreamedShard("a", 4095, {20'000, 20'000, 20'000})}};
    const StreamPlan plan = *PlanStream(checkpoint, limits);
    Check(checkpoint, plan, limits);
    REQUIRE(plan.slot_bytes == 20480 + 4096);
    for (const StreamBatch& batch : plan.batches) REQUIRE(batch.pieces[0].begin == 0);
  }
  SECTION("one beyond the bound") {
    const Checkpoint checkpoint{.shards = {StreamedShard("a", 100, {50, 200'000, 50})}};
    const StreamPlan plan = *PlanStream(checkpoint, limits);
    Check(checkpoint, plan, limits);
    REQUIRE(plan.slot_bytes == 65536);
    REQUIRE(plan.batches.size() == 5);
    REQUIRE(plan.batches[1].pieces.size() == 1);
    REQUIRE(plan.batches[4].pieces.size() == 2);  // its end, and the one behind it
  }
}

TEST_CASE("tensors that hold nothing come too, also in a file of nothing else", "[storage]") {
  const Checkpoint checkpoint{.shards = {StreamedShard("a", 4096, {0, 10, 0, kSlot - 10, 0}, "a"),
                                         StreamedShard("b", 120, {0, 0}, "b"),
                                         StreamedShard("c", 120, {}, "c")}};
  const StreamPlan plan = *PlanStream(checkpoint, kSmall);
  Check(checkpoint, plan, kSmall);
  REQUIRE(plan.batches.back().bytes == 0);
  REQUIRE(plan.batches.back().pieces.size() == 2);
}

TEST_CASE("a batch's pieces fit a message, however many and long their names", "[storage]") {
  const StreamLimits limits{.max_text_bytes = 20'000};
  Checkpoint checkpoint{.shards = {StreamedShard("a", 80, std::vector<std::uint64_t>(5000, 3),
                                                 std::string(40, '\x01'))}};
  checkpoint.shards[0].header.tensors[7].name = std::string(4096, '\x01');  // 24 KiB as JSON
  const StreamPlan plan = *PlanStream(checkpoint, limits);
  Check(checkpoint, plan, limits);
  for (const StreamBatch& batch : plan.batches) {
    std::size_t text = 0;
    for (const StreamPiece& piece : batch.pieces) {
      const json::Json entry = {{"name", checkpoint.shards[0].header.tensors[piece.tensor].name},
                                {"dtype", "F8_E4M3FNUZ"},
                                {"shape", {UINT64_MAX}},
                                {"begin", UINT64_MAX},
                                {"bytes", UINT64_MAX},
                                {"at", UINT64_MAX}};
      text += json::Dump(entry).size() + 1;
    }
    REQUIRE((text <= limits.max_text_bytes || batch.pieces.size() == 1));
  }
}

TEST_CASE("any checkpoint streams as a whole", "[storage][property]") {
  std::mt19937_64 random(11);
  for (int round = 0; round < 300; ++round) {
    Checkpoint checkpoint;
    for (std::size_t s = 1 + random() % 4; s > 0; --s) {
      std::vector<std::uint64_t> sizes(random() % 20);
      for (std::uint64_t& size : sizes) size = random() % (std::uint64_t{1} << (random() % 17));
      checkpoint.shards.push_back(
          StreamedShard("f" + std::to_string(s), 10 + random() % 9000, sizes));
    }
    const StreamLimits limits{.min_slot_bytes = 4096 * (1 + random() % 3),
                              .max_slot_bytes = 4096 * (3 + random() % 10),
                              .request_bytes = 4096 * (1 + random() % 4),
                              .slots = static_cast<std::uint32_t>(1 + random() % 5)};
    const auto plan = PlanStream(checkpoint, limits);
    if (checkpoint.data_bytes() == 0) {
      REQUIRE(plan.status().code() == StatusCode::kInvalidArgument);
    } else {
      REQUIRE(plan.ok());
      Check(checkpoint, *plan, limits);
    }
  }
}

TEST_CASE("limits that make no sense are refused", "[storage]") {
  const Checkpoint checkpoint{.shards = {StreamedShard("a", 8, {100})}};
  for (const StreamLimits& limits :
       {StreamLimits{.slots = 0}, StreamLimits{.request_bytes = 5000},
        StreamLimits{.min_slot_bytes = 0}, StreamLimits{.max_slot_bytes = 4096},
        StreamLimits{.max_slot_bytes = std::uint64_t{1} << 40}}) {
    REQUIRE(PlanStream(checkpoint, limits).status().code() == StatusCode::kInvalidArgument);
  }
}

}  // namespace
}  // namespace rouse::storage
