#include <charconv>
#include <set>
#include <span>
#include <vector>

#include "agent/storage/read_plan.h"
#include "agent/tests/fuzz/harness.h"

namespace rouse::fuzz {
namespace {

using namespace storage;

constexpr std::size_t kMaxFuzzedShards = 8;

void CheckHeader(const ShardHeader& header, std::uint64_t file_bytes) {
  Check(header.data_offset + header.data_bytes == file_bytes, "the data ends with the file");
  std::uint64_t end = 0;
  std::set<std::string_view> names;
  for (const FileTensor& tensor : header.tensors) {
    Check(tensor.begin == end && tensor.end >= end, "tensors leave no hole and do not overlap");
    Check(tensor.dtype != nullptr, "every dtype is known");
    Check(names.insert(tensor.name).second, "no name is there twice");
    end = tensor.end;
  }
  Check(end == header.data_bytes, "tensors cover the data");
}

void CheckPlan(const Checkpoint& checkpoint, const ReadPlan& plan) {
  std::vector<std::uint64_t> done(plan.shards.size());
  std::uint64_t free_from = 0;
  for (const Read& read : plan.reads) {
    const ShardPlace& place = plan.shards.at(read.shard);
    Check(read.bytes > 0, "no read is empty");
    Check(read.file_offset == place.file_offset + done[read.shard], "reads follow each other");
    Check(read.arena_offset == place.arena_offset + done[read.shard], "bytes land as they lie");
    Check(read.arena_offset % kDirectAlignment == 0, "memory is aligned");
    Check(!place.direct || read.file_offset % kDirectAlignment == 0, "direct reads are aligned");
    Check(read.arena_offset >= free_from, "reads do not overlap");
    done[read.shard] += read.bytes;
    free_from = read.arena_offset + read.bytes;
    Check(free_from <= plan.arena_bytes, "reads end inside the arena");
  }
  for (std::size_t i = 0; i < done.size(); ++i) {
    const Shard& shard = checkpoint.shards[i];
    Check(done[i] == plan.shards[i].bytes, "every byte is read");
    Check(shard.header.data_bytes == 0 || plan.shards[i].file_offset + done[i] == shard.file_bytes,
          "up to the end of the file");
  }
}

void CheckManifest(const Checkpoint& checkpoint, const ReadPlan& plan) {
  const auto manifest = DescribeArena(checkpoint, plan);
  if (!manifest.ok()) return;
  const auto again = ManifestFromJson(ToJson(*manifest), "manifest");
  Check(again.ok() && *again == *manifest, "an arena's manifest is a good one");
}

}  // namespace

void Safetensors(std::string_view input) {
  const auto length = DecodeHeaderLength(
      std::as_bytes(std::span(input)).first(std::min<std::size_t>(input.size(), 8)), input.size(),
      "f");
  Check(!length.ok() || *length <= input.size() - 8, "a header ends inside its file");
  if (length.ok()) (void)DecodeHeader(input.substr(8, *length), input.size(), "f");

  std::optional<ShardIndex> index;
  if (const std::string_view text = NextLine(input); !text.empty()) {
    auto decoded = DecodeIndex(text);
    if (!decoded.ok()) return;
    index = *std::move(decoded);
    for (const auto& [tensor, file] : *index) {
      Check(file.find('/') == std::string::npos, "an index does not leave its folder");
    }
  }
  std::vector<Shard> shards;
  while (!input.empty() && shards.size() < kMaxFuzzedShards) {
    std::string_view header = NextLine(input);
    Shard shard{.file = static_cast<char>('a' + shards.size()) + std::string(".safetensors")};
    const auto number =
        std::from_chars(header.data(), header.data() + header.size(), shard.file_bytes);
    header.remove_prefix(static_cast<std::size_t>(number.ptr - header.data()));
    if (header.starts_with(' ')) header.remove_prefix(1);
    auto decoded = DecodeHeader(header, shard.file_bytes, shard.file);
    if (!decoded.ok()) {
      Check(decoded.status().message().find(shard.file) == 0, "an error names the file");
      return;
    }
    CheckHeader(*decoded, shard.file_bytes);
    shard.header = *std::move(decoded);
    shards.push_back(std::move(shard));
  }
  const auto checkpoint = MakeCheckpoint(std::move(shards), index);
  if (!checkpoint.ok()) return;
  const auto plan = PlanReads(*checkpoint, 1u << 30);
  if (!plan.ok()) return;
  CheckPlan(*checkpoint, *plan);
  CheckManifest(*checkpoint, *plan);
}

}  // namespace rouse::fuzz
