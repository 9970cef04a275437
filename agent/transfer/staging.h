// Buffers of host memory through which peers of other nodes read weights in GPU memory. Private to
// agent/transfer.
//
// UCX reads what it has registered, and few builds of it, on few machines, can register a GPU's
// memory. Host memory always can be: the source copies what a peer asks for into a buffer, and the
// peer reads that one-sidedly. Each lease has kStageBuffers of them, so that one fills while
// another is read; they are kept for the next lease, since registering them again would cost more
// than a copy.
//
// Threads: the caller's lock, but for the copying into a buffer that is marked busy.

#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "agent/memory/arena.h"
#include "common/peer_messages.h"
#include "common/result.h"

namespace rouse::transfer {

class Staging {
 public:
  /// The buffers of one lease: slabs of one arena.
  struct Buffers {
    std::string lease;
    std::shared_ptr<memory::Arena> arena;
    std::unique_ptr<memory::Pin> pin;  // goes before what it pins
    std::array<bool, kStageBuffers> busy{};
  };

  /// `bytes` of each buffer, for at most `max_leases` at once.
  Staging(std::uint64_t bytes, std::size_t max_leases) : bytes_(bytes), max_leases_(max_leases) {}

  /// The buffers of `lease`: those it has, else those of a lease that is no more, else new ones,
  /// from and to which `gpu` copies fast. Errors: ResourceExhausted when others have all of them,
  /// or there is no memory.
  Result<std::shared_ptr<Buffers>> Of(const std::string& lease, const memory::Memory& gpu,
                                      const std::function<bool(const std::string&)>& lives);
  bool empty() const { return all_.empty(); }
  void Clear() { all_.clear(); }

 private:
  const std::uint64_t bytes_;
  const std::size_t max_leases_;
  std::vector<std::shared_ptr<Buffers>> all_;
};

}  // namespace rouse::transfer
