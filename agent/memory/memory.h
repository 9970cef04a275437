// A kind of memory that arenas can be made of: the host's here, a GPU's in agent/cuda/device.h.
//
// Threads: any.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "agent/memory/owned_fd.h"
#include "agent/memory/slab.h"
#include "common/result.h"

namespace rouse::memory {

class CopyEngine;

class Memory {
 public:
  virtual ~Memory() = default;

  /// "host", "cuda:0".
  virtual std::string name() const = 0;
  /// Whether the CPU may touch the bytes of a mapped slab.
  virtual bool on_host() const = 0;
  /// The UUID of the GPU that it is the memory of ("GPU-6f0c..."); empty for the host's.
  virtual std::string gpu() const { return ""; }
  /// Slabs are mapped in whole multiples of this; a power of two.
  virtual std::uint64_t granularity() const = 0;

  /// Address space for slabs, nothing behind it. `bytes` is a multiple of granularity().
  virtual Result<std::byte*> Reserve(std::uint64_t bytes) const = 0;
  /// Gives back what Reserve gave, after every slab in it was unmapped (Slab::UnmapAt).
  virtual void Free(std::byte* base, std::uint64_t bytes) const = 0;

  /// A new slab. ResourceExhausted when there is not enough memory.
  virtual Result<std::unique_ptr<Slab>> Create(std::uint64_t bytes,
                                               const std::string& name) const = 0;
  /// Another process's slab, to be read only. InvalidArgument when the descriptor is not one of
  /// `bytes` bytes that will stay.
  virtual Result<std::unique_ptr<Slab>> Import(OwnedFd fd, std::uint64_t bytes) const = 0;

  /// Takes the memory of mapped slabs now, where that would otherwise happen at first touch.
  virtual Status Populate(std::byte* base, std::uint64_t bytes, int threads) const = 0;

  /// What copies into arenas of this memory and digests them there (copy_engine.h). `threads` is
  /// for the CPU's. Unavailable when a device has no code for it.
  virtual Result<std::unique_ptr<CopyEngine>> NewCopyEngine(int threads) const = 0;
};

/// The host's (memfd).
std::shared_ptr<const Memory> HostMemory();

/// The GPUs of this machine; of rouse_cuda (agent/cuda/gpus.h), or a test's. Threads: any.
class Gpus {
 public:
  virtual ~Gpus() = default;

  /// Ok where there are GPUs; else Unavailable says why not.
  virtual Status Check() = 0;
  /// The memory of the GPU with this UUID. The first call for each takes about half a second.
  /// NotFound when this process does not see it.
  virtual Result<std::shared_ptr<const Memory>> MemoryOf(const std::string& uuid) = 0;
};

}  // namespace rouse::memory
