#include "agent/server/engine_probe.h"

#include <pthread.h>

#include <algorithm>

#include "agent/server/clock.h"
#include "agent/startup/engine_load.h"
#include "common/json.h"
#include "common/stoppable_sleep.h"

namespace rouse::agent {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kReadyTimeout{5'000};
constexpr milliseconds kLoadTimeout{2'000};
constexpr milliseconds kLongestCanaryPause{10'000};

void Pause(const std::stop_token& stop, milliseconds time) {
  SleepUntil(std::chrono::steady_clock::now() + time, stop);
}

}  // namespace

Status AskForOneToken(http::Client& engine, const std::string& served_model, milliseconds timeout) {
  const json::Json body = {{"model", served_model},
                           {"prompt", "Hello"},
                           {"max_tokens", 1},
                           {"temperature", 0},
                           {"ignore_eos", true}};
  ROUSE_ASSIGN_OR_RETURN(const http::Response answer,
                         engine.Send({.method = "POST",
                                      .target = "/v1/completions",
                                      .headers = {{"Content-Type", "application/json"}},
                                      .body = json::Dump(body),
                                      .timeout = timeout,
                                      .deadline = timeout},
                                     1u << 20));
  if (answer.status != 200) {
    return Unavailable("the engine answered the canary with HTTP " + std::to_string(answer.status) +
                       ": " + answer.body.substr(0, 512));
  }
  ROUSE_ASSIGN_OR_RETURN(const json::Json document, json::Parse(answer.body, "canary's answer"));
  json::Reader in(document, "canary");
  const json::Json& choices = in.Array("choices");
  if (in.status().ok() && choices.empty()) in.Fail("choices", "is empty");
  return in.status();
}

Result<EngineLoad> AskForLoad(http::Client& engine) {
  ROUSE_ASSIGN_OR_RETURN(
      const http::Response answer,
      engine.Send({.target = "/metrics", .timeout = kLoadTimeout, .deadline = kLoadTimeout},
                  16u << 20));
  if (answer.status != 200) {
    return Unavailable("the engine answers /metrics with HTTP " + std::to_string(answer.status));
  }
  return LoadFromMetrics(answer.body);
}

Result<std::unique_ptr<EngineProbe>> EngineProbe::Start(EngineProbeSettings settings,
                                                        EngineProbeHooks hooks) {
  ROUSE_ASSIGN_OR_RETURN(auto client, http::Client::Create(settings.url));
  return std::unique_ptr<EngineProbe>(
      new EngineProbe(std::move(settings), std::move(hooks), std::move(client)));
}

EngineProbe::EngineProbe(EngineProbeSettings settings, EngineProbeHooks hooks,
                         std::unique_ptr<http::Client> client)
    : settings_(std::move(settings)), hooks_(std::move(hooks)), client_(std::move(client)) {
  thread_ = std::jthread([this](const std::stop_token& stop) {
    pthread_setname_np(pthread_self(), "engine-probe");
    Run(stop);
  });
}

EngineProbe::~EngineProbe() = default;

Status EngineProbe::LookAtHealth() {
  ROUSE_ASSIGN_OR_RETURN(
      const http::Response answer,
      client_->Send({.target = "/health", .timeout = kReadyTimeout, .deadline = kReadyTimeout},
                    1u << 20));
  if (answer.status == 200) return Status();
  return Unavailable("the engine answers /health with HTTP " + std::to_string(answer.status));
}

void EngineProbe::WatchLoad(const std::stop_token& stop) {
  const auto until = std::chrono::steady_clock::now() + settings_.serving_interval;
  while (!stop.stop_requested() && std::chrono::steady_clock::now() < until) {
    hooks_.on_load(AskForLoad(*client_));
    SleepUntil(std::min(std::chrono::steady_clock::now() + settings_.load_interval, until), stop);
  }
}

void EngineProbe::Run(const std::stop_token& stop) {
  bool healthy = false;
  bool served = false;
  int failures = 0;
  milliseconds canary_pause{0};
  while (!stop.stop_requested()) {
    const Status health = LookAtHealth();
    if (stop.stop_requested()) return;
    if (health.ok()) {
      failures = 0;
      if (!healthy) hooks_.on_healthy(NowUs());
      healthy = true;
      if (!served) {
        const Status token =
            AskForOneToken(*client_, settings_.served_model, settings_.canary_timeout);
        if (stop.stop_requested()) return;
        served = token.ok();
        if (served) {
          hooks_.on_first_token(NowUs());
          hooks_.on_serving(true);
        } else {
          hooks_.on_canary_failed(token.message());
          canary_pause = std::clamp(canary_pause * 2, milliseconds(200), kLongestCanaryPause);
          Pause(stop, canary_pause);
        }
      } else {
        hooks_.on_serving(false);
      }
    } else if (healthy && ++failures >= settings_.failures_until_unhealthy) {
      healthy = false;
      served = false;
      canary_pause = milliseconds(0);
      hooks_.on_unhealthy("the engine has stopped answering: " + health.message());
    }
    if (served && failures == 0) {
      WatchLoad(stop);
    } else {
      Pause(stop, healthy && failures > 0 ? milliseconds(500) : settings_.starting_interval);
    }
  }
}

}  // namespace rouse::agent
