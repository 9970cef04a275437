// Who may read our slabs, until when. Pure: time is an argument, ids come from the caller.
//
// A lease that is neither renewed nor closed ends by itself, so a peer that was killed keeps
// nothing alive. Not thread-safe.

#pragma once

#include <chrono>
#include <cstddef>
#include <map>
#include <string>
#include <vector>

#include "common/result.h"

namespace rouse::transfer {

using TimePoint = std::chrono::steady_clock::time_point;

struct LeaseLimits {
  std::chrono::milliseconds duration{30'000};
  std::size_t max_leases = 256;
};

class LeaseTable {
 public:
  explicit LeaseTable(LeaseLimits limits) : limits_(limits) {}

  /// ResourceExhausted when `max_leases` live ones are open; AlreadyExists for a known id.
  Status Open(const std::string& id, const std::string& requester, TimePoint now);
  /// NotFound when it is not open (any more): open a new one.
  Status Renew(const std::string& id, TimePoint now);
  /// NotFound when it is not open (any more): the caller has nothing to do.
  Status Close(const std::string& id, TimePoint now);
  /// Drops the leases that have ended, and names their requesters.
  std::vector<std::string> Expire(TimePoint now);

  bool Lives(const std::string& id, TimePoint now) const;
  /// Ends them all, and names the requesters of those that lived.
  std::vector<std::string> Clear(TimePoint now);

  /// Leases that live at `now`.
  std::size_t Count(TimePoint now) const;
  std::chrono::milliseconds duration() const { return limits_.duration; }

 private:
  struct Lease {
    std::string requester;
    TimePoint ends;
  };

  LeaseLimits limits_;
  std::map<std::string, Lease> leases_;
};

}  // namespace rouse::transfer
