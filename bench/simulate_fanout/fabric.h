// A model of a network of full-duplex ports with flows between them.
//
// Sharing: a port divides its rate equally among its flows, and a flow gets the smaller of its two
// ports' shares. What a flow cannot use of a share is lost, so that no flow ever gets more than
// max-min fairness would give all flows together: times come out longer than on a real fabric, not
// shorter. Switches do not block.
//
// Times are nanoseconds, rates bytes per second. Not thread-safe.

#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <queue>
#include <vector>

namespace rouse::fanout {

using Nanoseconds = std::int64_t;
using Port = std::uint32_t;
using FlowId = std::uint32_t;

constexpr Nanoseconds kNever = std::numeric_limits<Nanoseconds>::max();

class Fabric {
 public:
  Port AddPort(double rate);

  FlowId Start(Port from, Port to, std::uint64_t bytes, Nanoseconds now);
  /// Ends a flow before its last byte.
  void Cancel(FlowId flow, Nanoseconds now);

  /// When the next flow ends if none starts before; kNever without flows.
  Nanoseconds NextEnd();
  /// Ends that flow. Requires NextEnd() to be `now`.
  FlowId EndNext(Nanoseconds now);

 private:
  struct PortState {
    double rate = 0;
    std::vector<FlowId> flows;
  };
  struct Flow {
    Port from = 0;
    Port to = 0;
    std::uint32_t place_from = 0;  // in the ports' lists
    std::uint32_t place_to = 0;
    double bytes_left = 0;
    double rate = 0;
    Nanoseconds since = 0;      // when bytes_left was right
    Nanoseconds ends = 0;       // at this rate
    Nanoseconds queued = 0;     // the entry in the queue that counts; never later than `ends`
    std::uint32_t version = 0;  // of that entry
  };
  struct Entry {
    Nanoseconds at = 0;
    FlowId flow = 0;
    std::uint32_t version = 0;
    bool operator>(const Entry& other) const { return at > other.at; }
  };

  void Remove(FlowId id, Nanoseconds now);
  void Reshare(Port port, Nanoseconds now);
  void Enqueue(FlowId id);

  std::vector<PortState> ports_;
  std::vector<Flow> flows_;
  std::vector<FlowId> free_;
  std::priority_queue<Entry, std::vector<Entry>, std::greater<>> ends_;
};

}  // namespace rouse::fanout
