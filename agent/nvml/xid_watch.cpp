#include "agent/nvml/xid_watch.h"

#include <pthread.h>

#include <map>
#include <memory>
#include <optional>
#include <utility>

#include "agent/nvml/library.h"
#include "common/log.h"

namespace rouse::nvml {
namespace {

/// As long as a new GPU, or the end, waits for the thread.
constexpr unsigned kWaitMs = 1000;

/// NVML while it is initialised, and a set of events. One thread's.
class Session {
 public:
  static Result<std::unique_ptr<Session>> Open(const std::string& path) {
    ROUSE_ASSIGN_OR_RETURN(const Library library, Library::Open(path));
    ROUSE_RETURN_IF_ERROR(ToStatus(library, library.Init(), "initialise NVML"));
    std::unique_ptr<Session> session(new Session(library));
    ROUSE_RETURN_IF_ERROR(
        ToStatus(library, library.EventSetCreate(&session->events_), "make a set of events"));
    return session;
  }
  ~Session() {
    if (events_ != nullptr) library_.EventSetFree(events_);
    library_.Shutdown();
  }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  Status Add(const std::string& gpu) {
    Device* device = nullptr;
    ROUSE_RETURN_IF_ERROR(ToStatus(library_, library_.DeviceByUuid(gpu.c_str(), &device),
                                   "find the GPU by its UUID"));
    ROUSE_RETURN_IF_ERROR(
        ToStatus(library_, library_.RegisterEvents(device, kXidEvent, events_), "watch for Xids"));
    gpus_[device] = gpu;
    return {};
  }

  bool empty() const { return gpus_.empty(); }

  /// Nullopt when there was none for kWaitMs.
  Result<std::optional<XidEvent>> Wait() {
    EventData data;
    const Code code = library_.EventSetWait(events_, &data, kWaitMs);
    if (code == Code::kTimeout) return std::optional<XidEvent>();
    // Which of them it is, is not said then.
    if (code == Code::kGpuIsLost && !gpus_.empty()) return Lost(gpus_.begin());
    ROUSE_RETURN_IF_ERROR(ToStatus(library_, code, "wait for Xids"));
    const auto found = gpus_.find(data.device);
    if (found == gpus_.end() || data.type != kXidEvent) return std::optional<XidEvent>();
    return std::optional(XidEvent{.gpu = found->second, .xid = data.data});
  }

 private:
  explicit Session(const Library& library) : library_(library) {}

  std::optional<XidEvent> Lost(std::map<Device*, std::string>::iterator which) {
    XidEvent event{.gpu = which->second, .xid = 0};
    gpus_.erase(which);
    return event;
  }

  const Library library_;
  EventSet* events_ = nullptr;
  std::map<Device*, std::string> gpus_;
};

}  // namespace

XidWatch::XidWatch(std::string library, std::function<void(const XidEvent&)> on_event)
    : library_(std::move(library)), on_event_(std::move(on_event)) {}

XidWatch::~XidWatch() = default;

void XidWatch::Add(const std::string& gpu) {
  const std::scoped_lock lock(mutex_);
  if (!known_.insert(gpu).second) return;
  new_.push_back(gpu);
  changed_.notify_all();
  if (thread_.joinable()) return;
  thread_ = std::jthread([this](const std::stop_token& stop) {
    pthread_setname_np(pthread_self(), "xid");
    Run(stop);
  });
}

void XidWatch::Run(const std::stop_token& stop) {
  auto session = Session::Open(library_);
  if (!session.ok()) {
    log::Warning("failures of GPUs are not heard of", {{"error", session.status().ToString()}});
    return;
  }
  while (!stop.stop_requested()) {
    std::vector<std::string> added;
    {
      std::unique_lock lock(mutex_);
      if ((*session)->empty()) changed_.wait(lock, stop, [&] { return !new_.empty(); });
      added.swap(new_);
    }
    for (const std::string& gpu : added) {
      if (const Status watched = (*session)->Add(gpu); !watched.ok()) {
        log::Warning("failures of a GPU are not heard of",
                     {{"gpu", gpu}, {"error", watched.ToString()}});
      }
    }
    if ((*session)->empty()) continue;
    const auto event = (*session)->Wait();
    if (!event.ok()) {
      log::Warning("failures of GPUs are not heard of any more",
                   {{"error", event.status().ToString()}});
      return;
    }
    if (*event) on_event_(**event);
  }
}

}  // namespace rouse::nvml
