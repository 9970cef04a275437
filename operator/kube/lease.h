// Who leads: the decision. Pure; leader.h has the thread that acts on it.
//
// Clocks of other machines are never believed: a lease counts as expired when *we* have seen it
// unchanged for its whole duration. A leader that could not renew within the renew deadline stops
// acting before any other may take over, because the deadline is shorter than the duration.

#pragma once

#include <chrono>
#include <optional>
#include <string>

#include "common/result.h"
#include "operator/kube/resource.h"

namespace rouse::kube {

struct LeaseTiming {
  std::chrono::milliseconds duration{15'000};  ///< Others wait this long. Whole seconds.
  std::chrono::milliseconds renew_deadline{
      10'000};                             ///< We stop acting after this long without renewal.
  std::chrono::milliseconds retry{2'000};  ///< Between attempts.
};

/// The timing makes sense: retry < renew_deadline < duration, duration in whole seconds.
Status Check(const LeaseTiming& timing);

/// Annotation of the Lease: LeaseRecord::address.
inline constexpr char kHolderAddress[] = "rouse.dev/holder-address";

/// A Lease as the API server has it.
struct LeaseRecord {
  std::string holder;   ///< Empty: released.
  std::string address;  ///< Where the others reach it; empty: it did not say.
  std::chrono::milliseconds duration{15'000};
  std::string renew_time;  ///< Only compared for equality, never as a time.
  std::string resource_version;
  std::int64_t transitions = 0;

  bool operator==(const LeaseRecord&) const = default;
};

/// Reads spec of a Lease; what is missing or malformed counts as unset.
LeaseRecord DecodeLease(const Json& lease);

/// What we know, all times from our own steady clock.
struct LeaseView {
  using Time = std::chrono::steady_clock::time_point;

  std::optional<LeaseRecord> record;  ///< nullopt: no Lease object.
  Time changed_at;                    ///< When we first saw `record` as it is.
  bool leading = false;
  Time renewed_at;  ///< When the request of our last successful renewal was *sent*; if leading.

  /// Takes a fresh reading in: moves changed_at only when the record differs.
  void Observe(std::optional<LeaseRecord> fresh, Time now);
};

enum class LeaseStep {
  kAcquire,  ///< Write the lease with our name (create, or update at this resourceVersion).
  kRenew,    ///< Write it again.
  kWait,     ///< Another holds it.
  kLost,     ///< We led and may not any more: stop acting now.
};

/// What `identity` is to do next.
LeaseStep Decide(const LeaseView& view, const std::string& identity, const LeaseTiming& timing,
                 LeaseView::Time now);

}  // namespace rouse::kube
