// When certificates are renewed and authorities replaced. Pure: time is an argument.
//
// An authority is trusted first and signs later: by then everybody has seen it. It signs until its
// successor does, and is trusted until nothing that it signed can be alive. So at no time does
// anybody meet a certificate of an authority that it does not know, though nobody waits for
// anybody.
//
// The clock may be wrong for a while. An authority that has not begun by it signs nothing, and is
// kept and trusted; while there is no other, none is made unless somebody asks for it. One that has
// ended is trusted no more, and forgotten only once its successor has signed for as long as any
// certificate lives.

#pragma once

#include <chrono>
#include <cstddef>
#include <optional>
#include <vector>

#include "common/result.h"

namespace rouse::tls {

using TimePoint = std::chrono::sys_seconds;

/// By how much clocks may differ: certificates begin so much earlier, authorities stay so much
/// longer.
inline constexpr std::chrono::seconds kClockSkew{300};

struct Validity {
  TimePoint not_before;
  TimePoint not_after;

  bool operator==(const Validity&) const = default;
};

/// Of what is signed now; never longer than `authority` itself.
Validity ValidityFrom(TimePoint now, std::chrono::seconds lifetime, const Validity& authority);

/// How long after it was signed its holder asks for the next one: two thirds of what it has left,
/// which leaves a third for an operator that is away.
std::chrono::seconds RenewAfter(TimePoint now, const Validity& certificate);

struct RotationPolicy {
  std::chrono::seconds authority_lifetime = std::chrono::days(90);
  std::chrono::seconds certificate_lifetime = std::chrono::hours(1);
  /// How long after a bundle has been written everybody has read it: the kubelet brings a changed
  /// ConfigMap into running pods within about two minutes.
  std::chrono::seconds propagation = std::chrono::minutes(5);
};

/// InvalidArgument when an authority would end while certificates of it are alive.
Status Check(const RotationPolicy& policy);

/// What decisions about one authority depend on.
struct AuthorityTimes {
  TimePoint created;
  TimePoint not_after;
  /// Since when it stands in everybody's bundle; none: not yet.
  std::optional<TimePoint> published;
  /// Somebody asked for a successor.
  bool retire = false;
};

struct Rotation {
  std::optional<std::size_t> signer;  ///< None when no authority is alive.
  std::vector<std::size_t> trusted;   ///< In everybody's bundle, oldest first.
  std::vector<std::size_t> ended;     ///< To be forgotten.
  bool create = false;                ///< A successor is to be made.

  bool operator==(const Rotation&) const = default;
};

/// `authorities`, oldest first.
Rotation PlanRotation(const std::vector<AuthorityTimes>& authorities, TimePoint now,
                      const RotationPolicy& policy);

}  // namespace rouse::tls
