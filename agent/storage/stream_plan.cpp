#include "agent/storage/stream_plan.h"

#include <algorithm>

#include "common/json.h"

namespace rouse::storage {
namespace {

constexpr std::uint64_t kMaxSlotBytes = std::uint64_t{1} << 32;  // what one slab may have

std::uint64_t RoundDown(std::uint64_t bytes) {
  return bytes / kDirectAlignment * kDirectAlignment;
}

std::uint64_t RoundUp(std::uint64_t bytes) {
  return RoundDown(bytes + kDirectAlignment - 1);
}

// No less than what a piece takes in the message, whatever its numbers are. A header's names and
// shapes are bounded, so that one piece always fits.
std::size_t TextBytes(const FileTensor& tensor) {
  return json::Dump(tensor.name).size() + 24 * tensor.shape.size() + 160;
}

std::uint64_t SlotBytes(const Checkpoint& checkpoint, const StreamLimits& limits) {
  std::uint64_t largest = 0;
  for (const Shard& shard : checkpoint.shards) {
    for (const FileTensor& tensor : shard.header.tensors) {
      largest = std::max(largest, tensor.end - tensor.begin);
    }
  }
  // It may begin anywhere in its first block.
  return std::clamp(RoundUp(largest) + kDirectAlignment, limits.min_slot_bytes,
                    limits.max_slot_bytes);
}

// Fills one batch after the other.
class Batches {
 public:
  Batches(std::uint64_t slot_bytes, std::size_t max_text_bytes, std::vector<StreamBatch>& out)
      : slot_bytes_(slot_bytes), max_text_bytes_(max_text_bytes), out_(out) {}

  void BeginShard(std::uint32_t index, const Shard& shard) {
    Close();
    shard_ = index;
    file_bytes_ = shard.file_bytes;
    data_offset_ = shard.header.data_offset;
  }

  void Add(std::uint32_t index, const FileTensor& tensor) {
    const std::size_t text = TextBytes(tensor);
    std::uint64_t at = data_offset_ + tensor.begin;
    const std::uint64_t end = data_offset_ + tensor.end;
    if (open_ && (text_bytes_ + text > max_text_bytes_ || end - batch_.file_offset > slot_bytes_)) {
      Close();
    }
    if (!open_) Open(at);
    while (end - batch_.file_offset > slot_bytes_) {  // does not fit a slot of its own
      const std::uint64_t cut = batch_.file_offset + slot_bytes_;
      Put(index, at - data_offset_ - tensor.begin, at, cut - at, text);
      Close();
      Open(at = cut);
    }
    Put(index, at - data_offset_ - tensor.begin, at, end - at, text);
  }

  void Close() {
    if (!open_) return;
    open_ = false;
    // Whole blocks, as a direct read wants them, but for the file's last.
    if (end_ > batch_.file_offset) {
      batch_.bytes = std::min(RoundUp(end_ - batch_.file_offset), file_bytes_ - batch_.file_offset);
    }
    out_.push_back(std::move(batch_));
  }

 private:
  void Open(std::uint64_t at) {
    open_ = true;
    text_bytes_ = 0;
    batch_ = {.shard = shard_, .file_offset = RoundDown(at)};
    end_ = 0;
  }

  void Put(std::uint32_t index, std::uint64_t begin, std::uint64_t at, std::uint64_t bytes,
           std::size_t text) {
    batch_.pieces.push_back(
        {.tensor = index, .begin = begin, .bytes = bytes, .slot_offset = at - batch_.file_offset});
    text_bytes_ += text;
    if (bytes > 0) end_ = at + bytes;
  }

  const std::uint64_t slot_bytes_;
  const std::size_t max_text_bytes_;
  std::vector<StreamBatch>& out_;
  std::uint32_t shard_ = 0;
  std::uint64_t file_bytes_ = 0;
  std::uint64_t data_offset_ = 0;
  bool open_ = false;
  StreamBatch batch_;
  std::uint64_t end_ = 0;  // in the file, of what the open batch holds; 0: nothing yet
  std::size_t text_bytes_ = 0;
};

ReadPlan Reads(const Checkpoint& checkpoint, const StreamPlan& plan, std::uint64_t request_bytes) {
  ReadPlan reads;
  reads.arena_bytes = plan.batches.size() * plan.slot_bytes;
  reads.shards.resize(checkpoint.shards.size());
  for (std::size_t i = 0; i < plan.batches.size(); ++i) {
    const StreamBatch& batch = plan.batches[i];
    for (std::uint64_t done = 0; done < batch.bytes;) {
      const std::uint64_t bytes = std::min(batch.bytes - done, request_bytes);
      reads.reads.push_back({.shard = batch.shard,
                             .file_offset = batch.file_offset + done,
                             .arena_offset = i * plan.slot_bytes + done,
                             .bytes = bytes});
      done += bytes;
    }
  }
  return reads;
}

}  // namespace

Result<StreamPlan> PlanStream(const Checkpoint& checkpoint, const StreamLimits& limits) {
  for (const std::uint64_t bytes :
       {limits.min_slot_bytes, limits.max_slot_bytes, limits.request_bytes}) {
    if (bytes == 0 || bytes % kDirectAlignment != 0 || bytes > kMaxSlotBytes) {
      return InvalidArgument("a stream with " + std::to_string(bytes) +
                             " bytes; slots and requests are multiples of " +
                             std::to_string(kDirectAlignment) + " up to 4 GiB");
    }
  }
  if (limits.slots == 0 || limits.max_slot_bytes < limits.min_slot_bytes) {
    return InvalidArgument("a stream of " + std::to_string(limits.slots) + " slots of " +
                           std::to_string(limits.min_slot_bytes) + " to " +
                           std::to_string(limits.max_slot_bytes) + " bytes");
  }
  StreamPlan plan;
  plan.slot_bytes = SlotBytes(checkpoint, limits);
  Batches batches(plan.slot_bytes, limits.max_text_bytes, plan.batches);
  for (std::uint32_t i = 0; i < checkpoint.shards.size(); ++i) {
    const Shard& shard = checkpoint.shards[i];
    batches.BeginShard(i, shard);
    for (std::uint32_t t = 0; t < shard.header.tensors.size(); ++t) {
      batches.Add(t, shard.header.tensors[t]);
    }
  }
  batches.Close();
  plan.reads = Reads(checkpoint, plan, limits.request_bytes);
  if (plan.reads.reads.empty()) {
    return InvalidArgument("the checkpoint has no tensor with any bytes");
  }
  plan.slots = static_cast<std::uint32_t>(std::min<std::size_t>(limits.slots, plan.batches.size()));
  return plan;
}

}  // namespace rouse::storage
