// Hears of it when the driver reports that a GPU has failed (an Xid), or that it is gone.
//
//   XidWatch watch("libnvidia-ml.so.1", [](const XidEvent& event) { ... FaultOf(...) ... });
//   watch.Add("GPU-…");
//
// Which Xids matter is not decided here (agent/startup/gpu_fault.h). Thread "xid": begins with the
// first Add, and opens NVML then, so that nothing of it is there where no engine uses a GPU. Where
// NVML cannot be had, that is logged once, and nothing is heard.

#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

namespace rouse::nvml {

struct XidEvent {
  std::string gpu;        ///< Its UUID.
  std::uint64_t xid = 0;  ///< 0: the driver cannot reach it any more.
};

class XidWatch {
 public:
  /// `on_event` is called on the watch's thread, for one GPU that is lost once.
  XidWatch(std::string library, std::function<void(const XidEvent&)> on_event);
  /// Waits for the thread, at most for a second.
  ~XidWatch();

  /// Watches one more GPU, by its UUID; knows those that it watches. Any thread; returns at once.
  void Add(const std::string& gpu);

 private:
  void Run(const std::stop_token& stop);

  const std::string library_;
  const std::function<void(const XidEvent&)> on_event_;
  std::mutex mutex_;
  std::condition_variable_any changed_;
  std::set<std::string> known_;   ///< Guarded.
  std::vector<std::string> new_;  ///< Guarded: to be registered.
  std::jthread thread_;           ///< Guarded until it runs; last: it uses all of the above.
};

}  // namespace rouse::nvml
