#include "agent/server/graph_capture.h"

#include <pthread.h>

#include <utility>

#include "common/log.h"

namespace rouse::agent {
namespace {

using std::chrono::milliseconds;

/// Until it serves, and while it has requests.
constexpr milliseconds kCaptureTick{200};
/// Between two commands: requests that came are begun.
constexpr milliseconds kBetween{20};
constexpr milliseconds kAfterFailure{5'000};
constexpr int kMaxFailures = 3;

}  // namespace

GraphCapture::GraphCapture(const GraphCaptureSettings& settings, Commands& commands,
                           GraphCaptureHooks hooks)
    : settings_(settings),
      commands_(commands),
      hooks_(std::move(hooks)),
      thread_([this](const std::stop_token& stop) {
        pthread_setname_np(pthread_self(), "graphs");
        Run(stop);
      }) {}

GraphCapture::~GraphCapture() {
  Stop();
}

void GraphCapture::Stop() {
  thread_.request_stop();
  if (thread_.joinable()) thread_.join();
}

void GraphCapture::OnEngine() {
  const std::scoped_lock lock(mutex_);
  ++engine_;
  left_ = true;
  failures_ = 0;
  changed_.notify_all();
}

void GraphCapture::Run(const std::stop_token& stop) {
  while (!stop.stop_requested()) {
    {
      std::unique_lock lock(mutex_);
      if (!changed_.wait(lock, stop, [&] { return left_; })) return;
    }
    milliseconds pause = kCaptureTick;
    if (hooks_.serving() && commands_.Ready().ok() && !hooks_.busy()) {
      const auto outcome = CaptureSome(stop);
      const std::scoped_lock lock(mutex_);
      if (outcome && outcome->status.ok()) {
        pause = kBetween;
        failures_ = 0;
      } else if (outcome) {
        log::Warning("graphs not captured", {{"error", outcome->status.ToString()}});
        pause = kAfterFailure;
        left_ = left_ && ++failures_ < kMaxFailures;
      }
    }
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, stop, pause, [] { return false; });
  }
}

// Nullopt when another command was under way, or it ended with us.
std::optional<CommandOutcome> GraphCapture::CaptureSome(const std::stop_token& stop) {
  const auto ended = [this](const CommandOutcome& outcome) {
    const std::scoped_lock lock(mutex_);
    outcome_ = outcome;
    changed_.notify_all();
  };
  std::uint64_t engine = 0;
  {
    const std::scoped_lock lock(mutex_);
    engine = engine_;
  }
  const Status begun =
      commands_.Begin(CommandKind::kCaptureGraphs, settings_.budget, ended, milliseconds(0));
  if (!begun.ok()) return std::nullopt;
  std::optional<CommandOutcome> outcome;
  {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, stop, [&] { return outcome_.has_value(); });
    outcome = std::exchange(outcome_, std::nullopt);
  }
  if (!outcome || !outcome->status.ok()) return outcome;
  const std::scoped_lock lock(mutex_);
  if (engine != engine_) return outcome;  // It is gone, and the next one has captured nothing yet.
  const double left = outcome->values["left"];
  hooks_.on_captured(outcome->values["captured"], left);
  left_ = left > 0;
  if (!left_) log::Info("all graphs are captured");
  return outcome;
}

}  // namespace rouse::agent
