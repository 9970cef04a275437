// The canary of a wake: what the engine answers a fixed prompt before it sleeps and after it woke.
//
// Greedy, so the answers are equal if the weights are, but for what the engine computes them with:
// requests that happen to be in the same batch, and graphs captured since, choose other kernels,
// whose last bits differ. So each answer that the engine gave while it had its weights counts, and
// whoever asks and gets another one asks again.
//
// Threads: any, one Record or Check at a time.

#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>

#include "agent/server/role_driver.h"
#include "common/http.h"
#include "common/result.h"

namespace rouse::agent {

class Canary {
 public:
  Canary(std::unique_ptr<http::Client> engine, std::string served_model,
         std::chrono::milliseconds timeout)
      : engine_(std::move(engine)), served_model_(std::move(served_model)), timeout_(timeout) {}

  /// While the engine serves: asks until it answers as before, three times at most, and keeps what
  /// is new.
  Status Record();
  bool known() const;
  /// Asks until the engine answers as before. DataLoss, with the answers, when it does not within
  /// some tenths of a second. The first answer of all is kept: an engine that began without weights
  /// had none to give before it slept.
  CanaryResult Check();

 private:
  struct Answer {
    std::string text;
    std::int64_t first_token_us = 0;
  };
  Result<Answer> Ask();
  bool Given(const std::string& answer) const;
  void Keep(std::string answer);
  Status Another(const std::string& answer) const;

  const std::unique_ptr<http::Client> engine_;
  const std::string served_model_;
  const std::chrono::milliseconds timeout_;
  mutable std::mutex mutex_;
  std::deque<std::string> answers_;  ///< Guarded by mutex_. The oldest first, no two equal.
};

}  // namespace rouse::agent
