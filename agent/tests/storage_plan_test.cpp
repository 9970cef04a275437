#include <catch2/catch.hpp>

#include "agent/storage/read_plan.h"
#include "agent/tests/storage_fixture.h"

namespace rouse::storage {
namespace {

using Catch::Contains;

constexpr std::uint64_t kMiB = 1u << 20;

// A shard with the given tensors, as DecodeHeader makes it; its header has `data_offset` bytes.
Shard PlannedShard(const std::string& file, std::uint64_t data_offset,
                   std::vector<std::pair<std::string, std::uint64_t>> tensors,
                   std::string_view dtype = "U8") {
  Shard shard{.file = file, .header = {.data_offset = data_offset}};
  for (auto& [name, elements] : tensors) {
    const std::uint64_t begin = shard.header.data_bytes;
    shard.header.data_bytes += elements * FindDtype(dtype)->bits / 8;
    shard.header.tensors.push_back({.name = name,
                                    .dtype = FindDtype(dtype),
                                    .shape = {elements},
                                    .begin = begin,
                                    .end = shard.header.data_bytes});
  }
  shard.file_bytes = data_offset + shard.header.data_bytes;
  return shard;
}

std::string IndexError(const std::string& text) {
  const auto index = DecodeIndex(text);
  REQUIRE_FALSE(index.ok());
  REQUIRE_THAT(index.status().message(), Contains("model.safetensors.index.json: "));
  return index.status().message();
}

TEST_CASE("an index names the file of each tensor", "[storage]") {
  const auto index = DecodeIndex(
      R"({"metadata":{"total_size":9,"deep":[[{"weight_map":1}]]},"weight_map":{"a":"1.safetensors","b":"2.safetensors"},"x":null})");
  REQUIRE(index.ok());
  REQUIRE(*index == ShardIndex{{"a", "1.safetensors"}, {"b", "2.safetensors"}});
}

TEST_CASE("an index that is malformed or leads out of the folder is refused", "[storage]") {
  const auto map = [](const std::string& entry) { return R"({"weight_map":{)" + entry + "}}"; };
  REQUIRE_THAT(IndexError("{}"), Contains("weight_map is missing"));
  REQUIRE_THAT(IndexError(map("")), Contains("weight_map is empty"));
  REQUIRE_THAT(IndexError("[]"), Contains("expected an object"));
  REQUIRE_THAT(IndexError("7"), Contains("expected an object"));
  REQUIRE_THAT(IndexError("{"), Contains("JSON"));
  REQUIRE_THAT(IndexError(R"({"weight_map":[]})"), Contains("expected an object, got an array"));
  REQUIRE_THAT(IndexError(R"({"weight_map":"x"})"), Contains("expected an object"));
  REQUIRE_THAT(IndexError(map(R"("a":1)")), Contains("expected a file name, got a number"));
  REQUIRE_THAT(IndexError(map(R"("a":{})")), Contains("expected a file name"));
  REQUIRE_THAT(IndexError(map(R"("a":["x.safetensors"])")), Contains("expected a file name"));
  REQUIRE_THAT(IndexError(map(R"("a":"x.safetensors","a":"y.safetensors")")),
               Contains("tensor \"a\" is there twice"));
  REQUIRE_THAT(IndexError(R"({"weight_map":{"a":"x.safetensors"},"weight_map":{}})"),
               Contains("there twice"));
  REQUIRE_THAT(IndexError(R"({"x":)" + std::string(100, '[') + std::string(100, ']') + "}"),
               Contains("nested deeper"));
  for (const std::string file :
       {"../x.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "x.bin", "",
        ".x.safetensors", "..\\\\x.safetensors", "a\\u0000.safetensors"}) {
    CAPTURE(file);
    REQUIRE_THAT(IndexError(map("\"a\":\"" + file + "\"")), Contains("no plain name"));
  }
}

TEST_CASE("the files to read are those of the index, or the single one, or all", "[storage]") {
  const std::vector<std::string> files = {"b.safetensors", "a.safetensors", "x.json",
                                          ".safetensors"};
  REQUIRE(*ChooseShards(std::nullopt, files) ==
          std::vector<std::string>{"a.safetensors", "b.safetensors"});
  REQUIRE(*ChooseShards(ShardIndex{{"t", "b.safetensors"}}, files) ==
          std::vector<std::string>{"b.safetensors"});
  REQUIRE(*ChooseShards(std::nullopt, {"model.safetensors", "consolidated.safetensors"}) ==
          std::vector<std::string>{"model.safetensors"});
  const auto missing = ChooseShards(ShardIndex{{"t", "c.safetensors"}}, files);
  REQUIRE(missing.status().code() == StatusCode::kNotFound);
  REQUIRE_THAT(missing.status().message(), Contains("tensor \"t\"") && Contains("c.safetensors"));
  REQUIRE(ChooseShards(std::nullopt, {"x.bin"}).status().code() == StatusCode::kNotFound);
}

TEST_CASE("a tensor is in one file, and in the one that the index says", "[storage]") {
  const std::vector<Shard> shards = {PlannedShard("a.safetensors", 64, {{"x", 4}}),
                                     PlannedShard("b.safetensors", 64, {{"y", 4}})};
  REQUIRE(MakeCheckpoint(shards, std::nullopt)->tensor_count() == 2);
  REQUIRE(MakeCheckpoint(shards, ShardIndex{{"x", "a.safetensors"}}).ok());

  const auto error = [](std::vector<Shard> given, std::optional<ShardIndex> index) {
    const auto checkpoint = MakeCheckpoint(std::move(given), index);
    REQUIRE_FALSE(checkpoint.ok());
    return checkpoint.status().message();
  };
  REQUIRE_THAT(error(shards, ShardIndex{{"x", "b.safetensors"}}),
               Contains("not in b.safetensors, but in a.safetensors"));
  REQUIRE_THAT(error(shards, ShardIndex{{"z", "b.safetensors"}}),
               Contains("tensor \"z\" is not in b.safetensors"));
  REQUIRE_THAT(error(shards, ShardIndex{{"z", "c.safetensors"}}), Contains("there is no file"));
  REQUIRE_THAT(error({shards[0], PlannedShard("b.safetensors", 64, {{"x", 4}})}, std::nullopt),
               Contains("tensor \"x\" is in a.safetensors and in b.safetensors"));
}

TEST_CASE("files lie one after the other, each block where direct reads can put it", "[storage]") {
  const Checkpoint checkpoint{{PlannedShard("a", 5000, {{"x", 6 * kMiB}}),
                               PlannedShard("e", 16, {}), PlannedShard("b", 64, {{"y", 100}})}};
  const auto plan = PlanReads(checkpoint, 4 * kMiB);
  REQUIRE(plan.ok());
  REQUIRE(plan->shards[0] ==
          ShardPlace{.file_offset = 4096, .arena_offset = 0, .bytes = 904 + 6 * kMiB});
  REQUIRE(plan->shards[1].bytes == 0);
  REQUIRE(plan->shards[2] ==
          ShardPlace{.file_offset = 0, .arena_offset = 6 * kMiB + 4096, .bytes = 164});
  REQUIRE(plan->arena_bytes == 6 * kMiB + 8192);
  REQUIRE(plan->reads == std::vector<Read>{{0, 4096, 0, 4 * kMiB},
                                           {0, 4096 + 4 * kMiB, 4 * kMiB, 2 * kMiB + 904},
                                           {2, 0, 6 * kMiB + 4096, 164}});
}

TEST_CASE("a file with a misaligned header is moved, and not read directly", "[storage]") {
  const auto plan = PlanReads({{PlannedShard("a", 5001, {{"x", 8}}, "I64")}}, 4096);
  REQUIRE(plan.ok());
  REQUIRE(plan->shards[0] ==
          ShardPlace{.file_offset = 5001, .arena_offset = 0, .bytes = 64, .direct = false});
  REQUIRE(DescribeArena({{PlannedShard("a", 5001, {{"x", 8}}, "I64")}}, *plan)->tensors[0].offset ==
          0);
}

TEST_CASE("plans that make no sense are refused", "[storage]") {
  const Checkpoint good{{PlannedShard("a", 64, {{"x", 4}})}};
  REQUIRE_FALSE(PlanReads(good, 0).ok());
  REQUIRE_FALSE(PlanReads(good, 4097).ok());
  REQUIRE_FALSE(PlanReads({{PlannedShard("a", 16, {})}}).ok());
  REQUIRE_THAT(PlanReads({{PlannedShard("a", 64, {{"x", std::uint64_t{1} << 43}}),
                           PlannedShard("b", 64, {{"y", std::uint64_t{1} << 43}})}},
                         1u << 30)
                   .status()
                   .message(),
               Contains("b: ") && Contains("the most for one arena"));
}

TEST_CASE("an arena's manifest holds every tensor at its place", "[storage]") {
  Checkpoint checkpoint{{PlannedShard("a", 5000, {{"x", 8}, {"empty", 0}, {"y", 6}}, "BF16"),
                         PlannedShard("b", 64, {{"z", 10}})}};
  checkpoint.shards[0].header.tensors[2].shape = {2, 3};
  const auto plan = PlanReads(checkpoint);
  const auto manifest = DescribeArena(checkpoint, *plan);
  REQUIRE(manifest.ok());
  REQUIRE(manifest->tensors.size() == 3);
  REQUIRE(manifest->tensors[1] == Tensor{.name = "y",
                                         .allocation = 0,
                                         .offset = 904 + 16,
                                         .shape = {2, 3},
                                         .stride = {3, 1},
                                         .dtype = "bfloat16"});
  REQUIRE(manifest->tensors[2].allocation == 1);
  const auto again = ManifestFromJson(ToJson(*manifest), "manifest");
  REQUIRE(again.ok());
  REQUIRE(*again == *manifest);
}

TEST_CASE("a tensor that no manifest can describe is named", "[storage]") {
  const auto error = [](const Shard& shard) {
    const Checkpoint checkpoint{{shard}};
    const auto manifest = DescribeArena(checkpoint, *PlanReads(checkpoint));
    REQUIRE(manifest.status().code() == StatusCode::kFailedPrecondition);
    return manifest.status().message();
  };
  REQUIRE_THAT(error(PlannedShard("a", 64, {{"x", 4}}, "C64")),
               Contains("a: tensor \"x\"") && Contains("C64") && Contains("engine's own loader"));
  REQUIRE_THAT(error(PlannedShard("a", 64, {{"x", 4}}, "F6_E2M3")), Contains("F6_E2M3"));
  Shard mixed = PlannedShard("a", 64, {{"x", 1}, {"y", 4}});
  mixed.header.tensors[1].dtype = FindDtype("F32");
  mixed.header.tensors[1].shape = {1};
  REQUIRE_THAT(error(mixed), Contains("tensor \"y\"") && Contains("no multiple of its element"));
  Shard odd = PlannedShard("a", 64, {{"x", 6}}, "F4");
  odd.header.tensors[0].shape = {2, 3};
  REQUIRE_THAT(error(odd), Contains("no multiple of 2"));
  odd.header.tensors[0].shape = {3, 2};
  const Checkpoint even{{odd}};
  const auto manifest = DescribeArena(even, *PlanReads(even));
  REQUIRE(manifest->tensors[0].shape == std::vector<std::int64_t>{3, 1});
  REQUIRE(manifest->tensors[0].dtype == "float4_e2m1fn_x2");
}

}  // namespace
}  // namespace rouse::storage
