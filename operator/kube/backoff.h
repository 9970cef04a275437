// Exponential backoff as data: the random number is an argument. Pure.

#pragma once

#include <chrono>

namespace rouse::kube {

struct BackoffPolicy {
  std::chrono::milliseconds initial{100};
  std::chrono::milliseconds max{30'000};
};

/// How long to wait after the `failures`-th failure in a row (1 is the first): initial * 2^(n-1),
/// at most max, of which a half to the whole by `jitter` in [0, 1). Zero for no failure.
std::chrono::milliseconds BackoffDelay(const BackoffPolicy& policy, int failures, double jitter);

}  // namespace rouse::kube
