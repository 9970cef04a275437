// Where the bytes of a checkpoint go.
//
// The reader asks for memory, has the storage write into it, and hands it back filled. A host sink
// answers with the place in the arena itself, so no byte is copied a second time; a device sink
// answers with pinned staging memory and copies it on to the device while the next reads run.
//
// Threads: all calls come from the thread that called ReadCheckpoint. The memory itself is written
// by the kernel or by threads of the reader between Acquire and Filled or Unused.

#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>

#include "common/result.h"

namespace rouse::storage {

class Sink {
 public:
  virtual ~Sink() = default;

  /// Size of the arena behind it.
  virtual std::uint64_t arena_bytes() const = 0;

  /// Memory for the arena's bytes [arena_offset, arena_offset + bytes). Its address is a multiple
  /// of kDirectAlignment, and it has room for `bytes` rounded up to such a multiple. Null when all
  /// staging memory is in use. Stays the sink's own; the caller gives it back with exactly one call
  /// of Filled or Unused. Ranges that are acquired at the same time do not overlap.
  virtual std::byte* Acquire(std::uint64_t arena_offset, std::uint64_t bytes) = 0;

  /// The memory holds the bytes now, and behind them zeros up to the next multiple of
  /// kDirectAlignment, which belong into the arena too. May return before they are there. An error
  /// ends the reading.
  virtual Status Filled(std::byte* memory, std::uint64_t arena_offset, std::uint64_t bytes) = 0;

  /// The memory is not needed; what it holds is worthless.
  virtual void Unused(std::byte* memory) = 0;

  /// Blocks until Acquire may have memory again, at most for `timeout`. Called only after Acquire
  /// answered null with no read under way.
  virtual Status WaitForMemory(std::chrono::milliseconds timeout) = 0;

  /// Blocks until everything that was Filled is in the arena and nothing is written to it any more.
  /// Called last, also after an error.
  virtual Status Flush() = 0;
};

}  // namespace rouse::storage
