// One rank's communicator, non-blocking throughout. Private to agent/nccl; knows nothing of CUDA,
// so that it is tested without.
//
// Every member returns by its deadline. A communicator that is not closed in order is aborted when
// it goes: NCCL then ends what still runs on the device, and the other ranks see an error or run
// into deadlines of their own.

#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <stop_token>

#include "agent/memory/broadcaster.h"
#include "agent/nccl/library.h"

namespace rouse::nccl {

/// Until when to wait, and what ends it earlier.
struct Patience {
  std::chrono::steady_clock::time_point until;
  std::stop_token stop;
};

class Communicator {
 public:
  /// Waits until all ranks are there. `library` outlives the communicator. The device's context is
  /// current in this call and in every other.
  static Result<Communicator> Create(const Library& library, const memory::BroadcastSeat& seat,
                                     const Patience& patience);

  /// Enqueues on `stream` that rank 0's `bytes` at `data` come to every other's. All ranks call it
  /// with the same sizes in the same order.
  Status Broadcast(std::byte* data, std::uint64_t bytes, void* stream, const Patience& patience);

  /// Ok, or the error that has come up since (another rank that went).
  Status Check() const;

  /// Orderly end, once everything enqueued is complete. Waits for all ranks.
  Status Close(const Patience& patience);

 private:
  struct Abort {
    const Library* library = nullptr;
    void operator()(Handle handle) const { library->CommAbort(handle); }
  };

  Communicator(const Library& library, Handle handle) : handle_(handle, Abort{&library}) {}
  const Library& library() const { return *handle_.get_deleter().library; }
  Status Await(Code code, std::string_view what, const Patience& patience) const;

  std::unique_ptr<Comm, Abort> handle_;
};

}  // namespace rouse::nccl
