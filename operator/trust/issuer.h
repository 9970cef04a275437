// Answers POST /v1/certificates (docs/protocols.md §1): an agent shows a token of its pod, and gets
// a certificate for that pod and nobody else.

#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "common/http.h"
#include "operator/plan/instance.h"
#include "operator/trust/keeper.h"
#include "operator/trust/token_review.h"

namespace rouse::trust {

/// How often one pod may ask: `burst` at once, and one more each `refill`. Pure; not thread-safe.
class PodLimits {
 public:
  using TimePoint = std::chrono::steady_clock::time_point;
  static constexpr int kBurst = 10;
  static constexpr std::chrono::seconds kRefill{6};
  /// Pods that are remembered; those whose allowance is whole again are forgotten first.
  static constexpr std::size_t kMaxPods = 16'384;

  bool Take(const std::string& uid, TimePoint now);

 private:
  struct Allowance {
    double left = kBurst;
    TimePoint at;
  };
  std::map<std::string, Allowance> pods_;
};

class Issuer {
 public:
  struct Hooks {
    /// Asks the API server; its answer is the TokenReview with its status.
    std::function<Result<Json>(const Json& review)> review;
    /// The pod "ns/name" as the cache has it; nullptr when there is none.
    std::function<std::shared_ptr<const plan::Instance>(const std::string& key)> pod;
    /// Whether a ModelService controls it.
    std::function<bool(const plan::Instance& pod)> managed;
    /// Each request has had this outcome: "signed" or the name of a status code.
    std::function<void(std::string_view outcome)> on_outcome;
  };

  /// `keeper` must outlive it.
  Issuer(const Keeper& keeper, Hooks hooks) : keeper_(keeper), hooks_(std::move(hooks)) {}

  /// Thread-safe; blocks for one call to the API server at most.
  http::Response Handle(const http::Request& request);

 private:
  Result<SignedCertificate> Issue(const std::string& body);
  Result<std::shared_ptr<const plan::Instance>> PodOfToken(const std::string& token);

  const Keeper& keeper_;
  const Hooks hooks_;
  std::atomic<int> reviewing_{0};
  std::mutex mutex_;
  PodLimits limits_;  ///< Guarded by mutex_.
};

}  // namespace rouse::trust
