#include "common/tls/rotation.h"

#include <algorithm>

namespace rouse::tls {

Validity ValidityFrom(TimePoint now, std::chrono::seconds lifetime, const Validity& authority) {
  return {.not_before = std::max(now - kClockSkew, authority.not_before),
          .not_after = std::min(now + lifetime, authority.not_after)};
}

std::chrono::seconds RenewAfter(TimePoint now, const Validity& certificate) {
  return std::max(std::chrono::seconds(1), (certificate.not_after - now) * 2 / 3);
}

Status Check(const RotationPolicy& policy) {
  // A successor is made after two thirds of an authority's life.
  const auto needed = policy.propagation + policy.certificate_lifetime + kClockSkew;
  if (policy.authority_lifetime / 3 >= needed) return {};
  return InvalidArgument(
      "an authority's life must be at least three times that of certificates, propagation and 5 "
      "minutes for clocks together (" +
      std::to_string((needed * 3).count()) + " s), or certificates would outlive it");
}

Rotation PlanRotation(const std::vector<AuthorityTimes>& authorities, TimePoint now,
                      const RotationPolicy& policy) {
  Rotation out;
  std::vector<std::size_t> alive;
  for (std::size_t i = 0; i < authorities.size(); ++i) {
    (authorities[i].not_after > now ? alive : out.ended).push_back(i);
  }
  if (alive.empty()) {
    out.create = true;
    return out;
  }

  const AuthorityTimes& newest = authorities[alive.back()];
  out.create = newest.retire || now >= newest.created + policy.authority_lifetime * 2 / 3;

  // The newest that everybody knows; while there is none, the one that is known longest.
  out.signer = alive.front();
  std::optional<TimePoint> signs_since;  // Known if there is an older one.
  for (const std::size_t i : alive) {
    if (!authorities[i].published) continue;
    const TimePoint known = *authorities[i].published + policy.propagation;
    if (now < known) continue;
    out.signer = i;
    signs_since = known;
  }
  for (const std::size_t i : alive) {
    const bool needed =
        i >= *out.signer || now < *signs_since + policy.certificate_lifetime + kClockSkew;
    (needed ? out.trusted : out.ended).push_back(i);
  }
  std::sort(out.ended.begin(), out.ended.end());
  return out;
}

}  // namespace rouse::tls
