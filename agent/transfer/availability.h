// Which chunks of an arena may be read, as a bitmap in shared memory that peers read one-sidedly
// while the rest still arrives.
//
// The bits of a chunk's word are set with release order after the chunk was verified, and never
// cleared: whoever sees a bit reads right bytes. An arena that begins anew gets a new bitmap.
//
// Threads: Set from one thread, the rest from any.

#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "agent/memory/arena.h"
#include "common/result.h"

namespace rouse::transfer {

class Availability {
 public:
  /// No chunk may be read yet. Requires `chunks` to be positive. Errors are Arena::Create's.
  static Result<std::shared_ptr<Availability>> Create(std::uint64_t chunks);

  /// The chunk is in its place and verified.
  void Set(std::uint64_t chunk);

  /// A copy, in the form of ChunkSet::words().
  std::vector<std::uint64_t> Words() const;
  std::uint64_t bytes() const { return memory_->bytes(); }
  /// The memory, one slab: what the source process maps.
  const memory::Slab& slab() const { return memory_->slab(0); }

 private:
  explicit Availability(std::unique_ptr<memory::Arena> memory) : memory_(std::move(memory)) {}

  const std::unique_ptr<memory::Arena> memory_;
};

}  // namespace rouse::transfer
