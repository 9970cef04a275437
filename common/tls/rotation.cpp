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
  std::vector<std::size_t> alive, early, late;
  for (std::size_t i = 0; i < authorities.size(); ++i) {
    const AuthorityTimes& each = authorities[i];
    (each.created - kClockSkew > now ? early : each.not_after > now ? alive : late).push_back(i);
    out.create = out.create || each.retire;
  }
  out.trusted = early;
  if (alive.empty()) {
    out.create = out.create || early.empty();
    return out;
  }
  out.create =
      out.create || now >= authorities[alive.back()].created + policy.authority_lifetime * 2 / 3;

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
  const auto renewed = policy.certificate_lifetime + kClockSkew;  // All that others have signed.
  const bool took_over = signs_since && now >= *signs_since + renewed;
  for (const std::size_t i : alive) {
    (i >= *out.signer || !took_over ? out.trusted : out.ended).push_back(i);
  }
  if (took_over) out.ended.insert(out.ended.end(), late.begin(), late.end());
  std::sort(out.trusted.begin(), out.trusted.end());
  std::sort(out.ended.begin(), out.ended.end());
  return out;
}

}  // namespace rouse::tls
