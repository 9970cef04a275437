// Gathers the targets that ask for one rank's weights at about the same time into a batch, and
// decides once for all of it. Pure: time is an argument. Not thread-safe.
//
// A target asks again and again until the answer is final. The first one opens a batch; when the
// window has passed, the next one to ask brings the decision about (ChooseTransport), and everybody
// learns it when asking next: a seat, or that it is to pull. While a broadcast is under way,
// others pull. A target that cannot take part (Misfit) pulls by itself, without keeping the others
// from it; one that stopped asking is left out. One that dies between the decision and
// its seat makes the broadcast fail at its set-up deadline, and the others pull then.
//
// A lone target waits the window for nothing. So it asks only if it was told that others start
// with it, and is told to pull at once where not even a full batch would be broadcast to.

#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include "agent/transfer/transport_choice.h"

namespace rouse::transfer {

struct RosterOptions {
  std::chrono::milliseconds window{50};
  std::chrono::milliseconds ask_again{10};
  /// Who was silent this long is left out.
  std::chrono::milliseconds silence{40};
  std::size_t max_targets = 15;
  TransportRates rates;
};

/// Ask again after this time.
struct JoinWait {
  std::chrono::milliseconds time{0};
  bool operator==(const JoinWait&) const = default;
};

/// Pull by yourself.
struct JoinPull {
  std::string reason;
  bool operator==(const JoinPull&) const = default;
};

/// Take part. Rounds are numbered from 1; all seats of one round belong to one broadcast.
struct JoinSeat {
  std::uint64_t round = 0;
  int rank = 0;  ///< From 1: the source is 0.
  int ranks = 0;
  bool operator==(const JoinSeat&) const = default;
};

class BroadcastRoster {
 public:
  using TimePoint = std::chrono::steady_clock::time_point;
  using Answer = std::variant<JoinWait, JoinPull, JoinSeat>;

  /// `library` says whether the source has NCCL; `bytes` is the size of the arena.
  BroadcastRoster(BroadcastMember source, std::uint64_t bytes, bool library,
                  const RosterOptions& options);

  /// Target `lease` asks. The first JoinSeat of a round is the caller's sign to begin it.
  Answer Ask(const std::string& lease, const BroadcastMember& target, TimePoint now);

  /// The broadcast under way has ended, well or not, or could not begin: whoever has not taken
  /// the seat yet is told to pull.
  void EndRound(const std::string& reason);

 private:
  struct Target {
    std::string lease;
    BroadcastMember member;
    TimePoint heard;
  };

  std::string Refusal(const BroadcastMember& target) const;
  Answer Decide(const std::string& lease, TimePoint now);
  BroadcastBatch Batch() const;
  void TellToPull(const std::string& reason, const std::string& but);

  const BroadcastMember source_;
  const std::uint64_t bytes_;
  const bool library_;
  const RosterOptions options_;
  std::vector<Target> targets_;  // of the batch that gathers, or of the round under way
  TimePoint opened_;
  bool running_ = false;
  std::uint64_t round_ = 0;
  std::set<std::string> pulling_;  // have not been told yet
  std::string why_;
};

}  // namespace rouse::transfer
