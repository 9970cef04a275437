// An arena: the slabs of one rank, mapped one after the other into one contiguous range.
//
//   auto arena = Arena::Create({.bytes = manifest.arena_bytes, .name = "rank0", .populate = true});
//   ... fill (*arena)->span(), or let the engine fill it through the slabs' descriptors ...
//   (*arena)->Seal();
//
// In GPU memory span() is a range of device addresses, which the CPU must not touch.
//
// Seal an arena before its descriptors go to an engine that must not write (a target's), and when a
// source has published. Mappings made before that stay writable, and must be there: RDMA devices
// ask for write access when they register memory, even to be read only (transfer/source_process.h).
//
// Lifetime: unmapped on destruction; memory that an engine has mapped lives on until it unmaps.
// Threads: const members from any thread; the bytes themselves are the callers' to coordinate.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "agent/memory/memory.h"
#include "agent/memory/slab.h"
#include "common/result.h"

namespace rouse::memory {

/// Mapping cost is per slab, so slabs are large; one registered region must stay under 4 GiB.
inline constexpr std::uint64_t kDefaultSlabBytes = std::uint64_t{1} << 30;

struct ArenaOptions {
  std::uint64_t bytes = 0;
  std::shared_ptr<const Memory> memory = HostMemory();
  /// A multiple of the memory's granularity, at most 4 GiB. The last slab is cut to what is left.
  std::uint64_t slab_bytes = kDefaultSlabBytes;
  /// Shows in /proc/PID/maps.
  std::string name = "rouse-arena";
  /// Takes all memory now instead of at first touch: a pull then runs at full speed, and too little
  /// memory is an error here instead of a killed process later.
  bool populate = false;
  int populate_threads = 2;
};

class Arena {
 public:
  /// InvalidArgument for sizes that make no sense, ResourceExhausted when memory or address space
  /// is used up.
  static Result<std::unique_ptr<Arena>> Create(const ArenaOptions& options);
  /// Address space only: MakeSlabs makes its slabs, for memory that is free only step by step.
  /// `populate` must not be asked for.
  static Result<std::unique_ptr<Arena>> Prepare(const ArenaOptions& options);
  /// Another process's arena, to be read: its slabs in order, `fds` one for each. They must be cut
  /// as `options` says (InvalidArgument).
  static Result<std::unique_ptr<Arena>> Import(const ArenaOptions& options,
                                               std::vector<OwnedFd> fds);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  std::uint64_t bytes() const { return bytes_; }
  const Memory& memory() const { return *memory_; }
  const std::shared_ptr<const Memory>& shared_memory() const { return memory_; }
  std::span<std::byte> span() { return {base_, bytes_}; }
  std::span<const std::byte> span() const { return {base_, bytes_}; }

  /// Makes those of the first `count` slabs that are not there yet. By one thread at a time, while
  /// no other uses slabs.
  Status MakeSlabs(std::size_t count);
  /// Whether all slabs are there.
  bool whole() const { return slabs_.size() == slab_count(); }

  /// Sizes in order, be they there yet or not; they add up to bytes().
  std::vector<std::uint64_t> SlabBytes() const;
  /// Of all slabs but the last.
  std::uint64_t slab_bytes() const { return slab_bytes_; }
  std::size_t slab_count() const { return (bytes_ + slab_bytes_ - 1) / slab_bytes_; }
  const Slab& slab(std::size_t index) const { return *slabs_[index]; }
  /// The part of span() that slab `index` makes up.
  std::span<std::byte> SlabSpan(std::size_t index) const;

  /// Seals every slab.
  Status Seal();
  bool sealed() const { return sealed_; }

 private:
  Arena(std::byte* base, std::uint64_t reserved, const ArenaOptions& options);
  Status AddSlab(Result<std::unique_ptr<Slab>> slab);
  std::uint64_t BytesOf(std::size_t slab) const;

  std::shared_ptr<const Memory> memory_;
  std::byte* base_;
  std::uint64_t reserved_;  // address space, whole granules
  std::uint64_t bytes_;
  std::uint64_t slab_bytes_;
  std::string name_;
  std::vector<std::unique_ptr<Slab>> slabs_;
  bool sealed_ = false;
};

}  // namespace rouse::memory
