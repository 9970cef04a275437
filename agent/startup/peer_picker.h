// Which peer to ask next, and when to give up.
//
// Pure: time is an argument, the peers come from the operator's last answer, best first. A peer
// that does not fit is never asked again; one that failed is asked again after a pause that grows,
// others first. Not thread-safe.

#pragma once

#include <chrono>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "common/messages.h"
#include "common/result.h"

namespace rouse::agent {

struct PeerPickerLimits {
  /// Without any transfer under way for this long, we give up.
  std::chrono::milliseconds deadline{120'000};
  /// The same when every peer known has refused for good: only a new peer could help.
  std::chrono::milliseconds refused_deadline{3'000};
  /// The same while the operator names none, and none that may come to have weights: long enough
  /// for it to notice one that has just begun.
  std::chrono::milliseconds alone_deadline{10'000};
  std::chrono::milliseconds first_pause{200};
  std::chrono::milliseconds longest_pause{5'000};
  int max_failed_transfers = 8;  ///< In a row, without anything new in between.
};

class PeerPicker {
 public:
  using TimePoint = std::chrono::steady_clock::time_point;
  struct Take {
    Peer peer;
  };
  struct WaitUntil {
    TimePoint at;
  };
  struct GiveUp {
    std::string reason;  ///< Each peer's last error.
  };
  using Choice = std::variant<Take, WaitUntil, GiveUp>;

  PeerPicker(const PeerPickerLimits& limits, TimePoint now) : limits_(limits), idle_since_(now) {}

  /// `expecting`: whether there may come to be other peers than these.
  Choice Next(const std::vector<Peer>& peers, TimePoint now, bool expecting = true);

  /// `peer` did not work out. `transferring`: it had begun to send.
  void OnFailed(const Peer& peer, const Status& why, bool transferring, TimePoint now);

  /// Something arrived that was missing.
  void OnProgress(TimePoint now);

 private:
  struct Record {
    std::string pod;
    int failures = 0;
    bool refused = false;
    TimePoint not_before;
    std::string error;
  };

  std::string Reasons() const;

  PeerPickerLimits limits_;
  TimePoint idle_since_;
  std::optional<TimePoint> all_refused_since_;
  std::optional<TimePoint> alone_since_;
  int failed_transfers_ = 0;
  std::map<std::string, Record> records_;  // by address
};

}  // namespace rouse::agent
