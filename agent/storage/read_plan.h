// Which bytes of a checkpoint to read, in which order, and where in an arena they go. Pure.
//
// A file's bytes land as they are: its data section is one allocation, and tensors are views at
// their offsets. A direct read asks that file offset, memory address and size are all multiples of
// the block size; if a file's place in the arena is equal to its place in the file modulo the block
// size, every block can be read straight to where it belongs. Placing each tensor by itself (512
// bytes aligned, as the engine's own allocations are) would need a second copy of every byte,
// because tensors follow each other in the file at any multiple of their element size. The price is
// that a view is aligned to its elements only; the engine copies it into its parameter anyway.
//
// An allocation starts at the block in which the data section starts, so up to 4,095 bytes of the
// header's tail come along; what lies between the end of a file and the next block is zero. The
// arena's content thus depends on the files only, not on how they were read.

#pragma once

#include <cstdint>
#include <vector>

#include "agent/storage/checkpoint.h"
#include "common/manifest.h"
#include "common/result.h"

namespace rouse::storage {

/// Of file offset, address and size of a direct read; what today's file systems ask at most.
inline constexpr std::uint64_t kDirectAlignment = 4096;
inline constexpr std::uint64_t kDefaultRequestBytes = kChunkBytes;

/// Where [file_offset, end of the file) of a shard goes.
struct ShardPlace {
  std::uint64_t file_offset = 0;
  std::uint64_t arena_offset = 0;  ///< A multiple of kDirectAlignment.
  std::uint64_t bytes = 0;         ///< 0 for a file without data.
  /// False for a file whose data section starts at no multiple of 8 (written by old programs):
  /// views into blocks would be misaligned, so it is moved and cannot be read directly.
  bool direct = true;

  bool operator==(const ShardPlace&) const = default;
};

struct Read {
  std::uint32_t shard = 0;
  std::uint64_t file_offset = 0;   ///< A multiple of kDirectAlignment if the shard is `direct`.
  std::uint64_t arena_offset = 0;  ///< A multiple of kDirectAlignment.
  std::uint64_t bytes = 0;         ///< Only the last of a file may be no multiple of it.

  bool operator==(const Read&) const = default;
};

struct ReadPlan {
  std::uint64_t arena_bytes = 0;   ///< A multiple of kDirectAlignment.
  std::vector<ShardPlace> shards;  ///< As in the checkpoint.
  /// In arena order, one file after the other; none crosses a multiple of the request size in the
  /// arena, so that a request of a chunk's size fills whole chunks.
  std::vector<Read> reads;

  std::uint64_t read_bytes() const;
};

/// InvalidArgument when request_bytes is no multiple of kDirectAlignment, or the checkpoint has no
/// data or more than an arena can hold.
Result<ReadPlan> PlanReads(const Checkpoint& checkpoint,
                           std::uint64_t request_bytes = kDefaultRequestBytes);

/// The arena of `plan` as a manifest: allocations and tensors (kind Parameter, form Loaded, named
/// and shaped as in the files). Identity and rank are the caller's to fill in. FailedPrecondition
/// for a tensor that no manifest can describe (its dtype, or an offset that is no multiple of its
/// element): the checkpoint must then be loaded by the engine's own loader.
Result<WeightManifest> DescribeArena(const Checkpoint& checkpoint, const ReadPlan& plan);

}  // namespace rouse::storage
