// Watches the engine's own HTTP port: is it healthy, does it answer with a token (the canary), and
// how many requests has it?

#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "common/http.h"
#include "common/messages.h"
#include "common/result.h"

namespace rouse::agent {

struct EngineProbeSettings {
  std::string url;                                    ///< "http://127.0.0.1:8000"
  std::string served_model;                           ///< What the canary asks for.
  std::chrono::milliseconds starting_interval{50};    ///< Between looks until it serves.
  std::chrono::milliseconds serving_interval{2'000};  ///< And from then on.
  std::chrono::milliseconds load_interval{1'000};     ///< Between looks at its load, then.
  /// Also how long the agent's end may wait for an engine that hangs. A canary that took longer is
  /// repeated.
  std::chrono::milliseconds canary_timeout{30'000};
  int failures_until_unhealthy = 3;  ///< In a row, once it has been healthy.
};

/// Called on the probe's thread.
struct EngineProbeHooks {
  std::function<void(std::int64_t at_us)> on_healthy;
  std::function<void(const std::string& reason)> on_unhealthy;
  std::function<void(std::int64_t at_us)> on_first_token;
  /// It serves: after the first token (`anew`), and at every look from then on. May take a while.
  std::function<void(bool anew)> on_serving;
  std::function<void(const std::string& reason)> on_canary_failed;
  /// While it serves: the requests that it has, or why that is not known.
  std::function<void(const Result<EngineLoad>& load)> on_load;
};

/// One completion of one token, as the canary asks for it. Ok when it came.
Status AskForOneToken(http::Client& engine, const std::string& served_model,
                      std::chrono::milliseconds timeout);

/// The requests that the engine has, from its /metrics.
Result<EngineLoad> AskForLoad(http::Client& engine);

class EngineProbe {
 public:
  /// Starts the thread ("engine-probe"). InvalidArgument when the URL is none.
  static Result<std::unique_ptr<EngineProbe>> Start(EngineProbeSettings settings,
                                                    EngineProbeHooks hooks);
  ~EngineProbe();

 private:
  EngineProbe(EngineProbeSettings settings, EngineProbeHooks hooks,
              std::unique_ptr<http::Client> client);
  void Run(const std::stop_token& stop);
  Status LookAtHealth();
  /// Until the next look at its health.
  void WatchLoad(const std::stop_token& stop);

  const EngineProbeSettings settings_;
  const EngineProbeHooks hooks_;
  const std::unique_ptr<http::Client> client_;
  std::jthread thread_;
};

}  // namespace rouse::agent
