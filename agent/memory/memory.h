// A kind of memory that arenas can be made of: the host's here, a GPU's in agent/cuda/device.h.
//
// Threads: any.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "agent/memory/owned_fd.h"
#include "agent/memory/slab.h"
#include "common/result.h"

namespace rouse::memory {

class CopyEngine;

/// Host memory that stays where it is, so that a device copies from and to it by itself.
class Pin {
 public:
  virtual ~Pin() = default;
};

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

  /// Copies out of mapped memory of this kind into the host's, and from there into it; done when
  /// they return. For what passes through the host; between arenas there is NewCopyEngine.
  virtual Status CopyOut(const std::byte* from, std::span<std::byte> to) const = 0;
  virtual Status CopyIn(std::span<const std::byte> from, std::byte* to) const = 0;
  /// Makes such copies from and to this part of the host's memory fast, while what is returned
  /// lives: before it is unmapped. None where there is nothing to do.
  virtual Result<std::unique_ptr<Pin>> PinHost(std::span<std::byte> host) const = 0;

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
