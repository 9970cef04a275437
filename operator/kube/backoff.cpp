#include "operator/kube/backoff.h"

#include <algorithm>

namespace rouse::kube {

std::chrono::milliseconds BackoffDelay(const BackoffPolicy& policy, int failures, double jitter) {
  if (failures <= 0) return std::chrono::milliseconds(0);
  auto whole = std::min(policy.initial, policy.max);
  for (int i = 1; i < failures && whole < policy.max; ++i) whole = std::min(whole * 2, policy.max);
  const double part = 0.5 + 0.5 * std::clamp(jitter, 0.0, 1.0);
  return std::chrono::milliseconds(
      static_cast<std::int64_t>(static_cast<double>(whole.count()) * part));
}

}  // namespace rouse::kube
