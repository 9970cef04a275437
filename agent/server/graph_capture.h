// Has an engine that left CUDA graphs out at its start capture them in idle moments, a few at a
// time, until none is left.
//
// Thread "graphs". An engine whose graphs are not captured answers all the same, only slower: what
// fails here is logged, and tried again a few times.

#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <stop_token>
#include <thread>

#include "agent/server/commands.h"
#include "common/result.h"

namespace rouse::agent {

enum class GraphCaptureMode { kEager, kLazy };
enum class GraphCaptureTrigger {
  kFirstRequest,  ///< The engine does it by itself.
  kIdle,          ///< We tell it when.
};

struct GraphCaptureSettings {
  GraphCaptureMode mode = GraphCaptureMode::kEager;
  GraphCaptureTrigger trigger = GraphCaptureTrigger::kIdle;
  /// Requests that come meanwhile wait this long, or for one graph.
  std::chrono::milliseconds budget{250};

  bool OurMatter() const {
    return mode == GraphCaptureMode::kLazy && trigger == GraphCaptureTrigger::kIdle;
  }
};

struct GraphCaptureHooks {
  /// Whether the instance serves.
  std::function<bool()> serving;
  /// Whether its engine has requests.
  std::function<bool()> busy;
  /// Must not call back.
  std::function<void(double captured, double left)> on_captured;
};

class GraphCapture {
 public:
  /// `commands` must outlive it, or its Stop.
  GraphCapture(const GraphCaptureSettings& settings, Commands& commands, GraphCaptureHooks hooks);
  ~GraphCapture();

  /// An engine has attached: it has captured nothing yet.
  void OnEngine();
  void Stop();

 private:
  void Run(const std::stop_token& stop);
  std::optional<CommandOutcome> CaptureSome(const std::stop_token& stop);

  const GraphCaptureSettings settings_;
  Commands& commands_;
  const GraphCaptureHooks hooks_;
  std::mutex mutex_;
  std::condition_variable_any changed_;
  std::uint64_t engine_ = 0;  ///< Counts those that attached.
  bool left_ = false;         ///< There may be graphs to capture.
  int failures_ = 0;
  std::optional<CommandOutcome> outcome_;
  std::jthread thread_;  // last: it uses all of the above
};

}  // namespace rouse::agent
