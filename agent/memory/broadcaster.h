// What sends one arena to several processes at once: NCCL (agent/nccl), or a fake in tests.
//
//   root:   id = broadcaster->NewId();  ... the id and a rank go to each target ...
//           broadcaster->Send({id, 3, 0}, arena, {});
//   target: broadcaster->Receive({id, 3, 2}, arena, {});
//
// All ranks of a broadcast must have arenas of the same size; what slabs they are made of is each
// one's own affair.
//
// Blocking; a broadcaster belongs to one thread at a time.

#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <memory>
#include <stop_token>
#include <string>

#include "agent/memory/arena.h"
#include "common/result.h"

namespace rouse::memory {

/// By which the ranks of one broadcast find each other. Who knows it can take part, so it is given
/// to those only that may have the weights.
using BroadcastId = std::array<std::byte, 128>;

/// One process's place in a broadcast; rank 0 sends.
struct BroadcastSeat {
  BroadcastId id{};
  int ranks = 0;
  int rank = 0;

  bool operator==(const BroadcastSeat&) const = default;
};

struct BroadcastOptions {
  /// Until all ranks have found each other; the longest that one missing rank keeps the others.
  std::chrono::milliseconds setup_deadline{10'000};
  /// Longest time without any progress after that.
  std::chrono::milliseconds progress_deadline{5'000};
  std::stop_token stop;
};

struct BroadcastReport {
  double setup_seconds = 0;     ///< Until all ranks had found each other.
  double transfer_seconds = 0;  ///< From then until the last byte.
};

class Broadcaster {
 public:
  virtual ~Broadcaster() = default;

  /// The root's first step.
  virtual Result<BroadcastId> NewId() = 0;

  /// Takes part as rank 0, or as another. Either returns within its deadlines, whatever the other
  /// ranks do, and only when no byte of `arena` will be read or written any more. The bytes that
  /// arrived are not verified.
  ///
  /// Errors: InvalidArgument, Unavailable (another rank failed or went), DeadlineExceeded,
  /// Cancelled, or the library's and the device's.
  virtual Result<BroadcastReport> Send(const BroadcastSeat& seat, const Arena& arena,
                                       const BroadcastOptions& options) = 0;
  virtual Result<BroadcastReport> Receive(const BroadcastSeat& seat, Arena& arena,
                                          const BroadcastOptions& options) = 0;
};

/// What a broadcast cannot leave.
struct BroadcastDomain {
  std::string name;      ///< Equal for all that can reach each other; empty: unknown.
  std::size_t gpus = 0;  ///< In it: no broadcast can have more ranks. 0: unknown.
};

/// Makes broadcasters; of rouse_nccl, or a test's. Threads: any.
class Broadcasting {
 public:
  virtual ~Broadcasting() = default;

  /// Ok where there can be broadcasts; else Unavailable says why not. The first call may take some
  /// hundred milliseconds.
  virtual Status Check() = 0;
  virtual BroadcastDomain Domain() = 0;
  /// For arenas in the memory of the GPU with this UUID. NotFound when this process does not see
  /// it.
  virtual Result<std::unique_ptr<Broadcaster>> On(const std::string& gpu) = 0;
};

}  // namespace rouse::memory
