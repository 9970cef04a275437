// The ConfigMap rouse-ca in every namespace that has a ModelService: whom its agents trust.

#pragma once

#include <chrono>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "operator/kube/api.h"

namespace rouse::trust {

class Bundles {
 public:
  using Clock = std::chrono::steady_clock;

  /// `api` must outlive it.
  explicit Bundles(kube::Api& api) : api_(api) {}

  /// The ConfigMap of `ns` holds `bundle`. Looks no more often than once a minute while nothing has
  /// changed, and writes what is not so. Blocks for two calls at most; thread-safe.
  Status Ensure(const std::string& ns, const std::string& bundle, Clock::time_point now);

  /// The same in each of `namespaces`, whatever fails in another; the first error.
  Status EnsureAll(const std::vector<std::string>& namespaces, const std::string& bundle,
                   Clock::time_point now);

 private:
  struct Written {
    std::string bundle;
    Clock::time_point at;
  };

  kube::Api& api_;
  std::mutex mutex_;
  std::map<std::string, Written> written_;  ///< Guarded by mutex_; by namespace.
};

}  // namespace rouse::trust
