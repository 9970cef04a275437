// A slab: one piece of weight memory behind a file descriptor, made by the agent and mapped by the
// engine.
//
// The descriptor is what travels (SCM_RIGHTS); whoever holds it or a mapping of it keeps the memory
// alive. What kind of memory it is, is the implementation's matter: a memfd on a host (memory.h),
// GPU memory in agent/cuda.
//
// Threads: a slab may be used from any thread, by one at a time.

#pragma once

#include <cstddef>
#include <cstdint>

#include "agent/memory/owned_fd.h"
#include "common/result.h"

namespace rouse::memory {

class Slab {
 public:
  virtual ~Slab() = default;
  Slab(const Slab&) = delete;
  Slab& operator=(const Slab&) = delete;

  std::uint64_t bytes() const { return bytes_; }

  /// The descriptor, owned by the slab; what sendmsg copies to the engine.
  int fd() const { return fd_.get(); }

  /// A descriptor of the caller's own for the same memory.
  Result<OwnedFd> DuplicateFd() const;

  /// Maps the slab at `address`, inside a range that the caller has reserved (Memory::Reserve):
  /// readable, and writable unless it was imported.
  virtual Status MapAt(std::byte* address) const = 0;
  /// Undoes MapAt; before Memory::Free.
  virtual void UnmapAt(std::byte* address) const = 0;

  /// From now on nobody can map the slab shared and writable, resize it, or lift this again, where
  /// the kind of memory knows such a promise (a GPU's does not). Existing mappings stay as they
  /// are. Doing it twice is fine.
  virtual Status Seal() = 0;

 protected:
  Slab(OwnedFd fd, std::uint64_t bytes) : fd_(std::move(fd)), bytes_(bytes) {}

 private:
  OwnedFd fd_;
  std::uint64_t bytes_;
};

}  // namespace rouse::memory
