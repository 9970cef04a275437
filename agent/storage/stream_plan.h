// In which pieces a checkpoint streams through a few slots of memory to whoever loads it. Pure.
//
// A batch is one stretch of one file, as it lies there, that fills a slot: whole tensors where they
// fit. It begins at a block of the file, so that every block can be read straight into the slot;
// two batches that share a block both read it. Tensors thus lie in a slot at any multiple of any
// size, and whoever needs them aligned copies those that are not.
//
// A slot has room for the largest tensor, up to a bound. A tensor that is larger than that is cut:
// it begins a batch of its own, its pieces follow each other through the slots in order, and the
// loader puts them together. So the memory is bounded whatever a file says.

#pragma once

#include <cstdint>
#include <vector>

#include "agent/storage/checkpoint.h"
#include "agent/storage/read_plan.h"
#include "common/result.h"

namespace rouse::storage {

struct StreamLimits {
  // Small enough that what was read from memory is still in the processor's cache when it is used,
  // large enough that a slot is worth a message.
  std::uint64_t min_slot_bytes = std::uint64_t{8} << 20;  ///< A multiple of kDirectAlignment.
  std::uint64_t max_slot_bytes = std::uint64_t{128} << 20;
  std::uint64_t request_bytes = std::uint64_t{2} << 20;  ///< Of one read.
  std::uint32_t slots = 4;  ///< Two that the loader reads from, two that the storage fills.
  /// What the pieces of one batch may take as JSON, so that they fit a message of the engine
  /// socket.
  std::size_t max_text_bytes = std::size_t{96} << 10;
};

/// Bytes of one tensor in a slot.
struct StreamPiece {
  std::uint32_t tensor = 0;  ///< In the shard's header.
  std::uint64_t begin = 0;   ///< In the tensor.
  std::uint64_t bytes = 0;   ///< 0 for a tensor that holds nothing.
  std::uint64_t slot_offset = 0;

  bool operator==(const StreamPiece&) const = default;
};

struct StreamBatch {
  std::uint32_t shard = 0;
  std::uint64_t file_offset = 0;  ///< A multiple of kDirectAlignment.
  std::uint64_t bytes = 0;        ///< To read; 0 when no tensor in it holds anything.
  std::vector<StreamPiece> pieces;

  bool operator==(const StreamBatch&) const = default;
};

struct StreamPlan {
  std::uint64_t slot_bytes = 0;  ///< A multiple of kDirectAlignment.
  std::uint32_t slots = 0;       ///< Batch i goes to slot i % slots.
  std::vector<StreamBatch> batches;
  /// The batches' reads in order, batch i at [i * slot_bytes, (i + 1) * slot_bytes) of an arena
  /// that nobody has as a whole.
  ReadPlan reads;
};

/// InvalidArgument when the limits make no sense or the checkpoint has no data.
Result<StreamPlan> PlanStream(const Checkpoint& checkpoint, const StreamLimits& limits = {});

}  // namespace rouse::storage
