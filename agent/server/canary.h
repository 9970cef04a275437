// The canary of a wake: what the engine answers a fixed prompt before it sleeps and after it woke.
//
// Greedy and alone in its batch both times, so the answers are equal if the weights are.
//
// Threads: any, one Record or Check at a time.

#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
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

  /// Asks, and keeps the answer: while the engine serves.
  Status Record();
  bool known() const;
  /// Asks again. DataLoss, with both answers, when it is another one. The first answer of all is
  /// kept: an engine that began without weights had none to give before it slept.
  CanaryResult Check();

 private:
  struct Answer {
    std::string text;
    std::int64_t first_token_us = 0;
  };
  Result<Answer> Ask();

  const std::unique_ptr<http::Client> engine_;
  const std::string served_model_;
  const std::chrono::milliseconds timeout_;
  mutable std::mutex mutex_;
  std::optional<std::string> answer_;
};

}  // namespace rouse::agent
