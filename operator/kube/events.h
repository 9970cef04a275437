// Kubernetes Events, so that `kubectl describe` tells what the operator did and why.
//
// Repetitions (same object, type, reason and note) within a window become one Event with a count,
// as events.k8s.io means it: the first goes out at once, later ones raise `series`, which is
// written at most once in a while. Emit never blocks: a full queue or an unreachable server loses
// events, and losses are counted.
//
// EventAggregator decides (pure, one thread); EventRecorder owns the queue and the thread.

#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <list>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "operator/kube/api.h"
#include "operator/kube/backoff.h"
#include "operator/kube/micro_time.h"

namespace rouse::kube {

enum class EventType { kNormal, kWarning };

struct Event {
  Json regarding;  ///< ObjectReference; see ReferenceTo.
  EventType type = EventType::kNormal;
  std::string reason;  ///< CamelCase, at most 128 characters, one of a small set: "PeerStart".
  std::string action;  ///< What was done or tried: "CreatePod".
  std::string note;    ///< For people; cut at 1024 bytes.
};

/// An ObjectReference to `object`.
Json ReferenceTo(const Resource& resource, const Json& object);
Json ReferenceTo(const Resource& resource, const ObjectName& name, const std::string& uid);

struct EventOptions {
  std::string controller = "rouse.dev/operator";  ///< reportingController
  std::string instance;                           ///< reportingInstance, e.g. the pod's name.
  std::size_t queue_limit = 1000;
  std::chrono::milliseconds window{360'000};       ///< Silence after which a repetition is new.
  std::chrono::milliseconds series_every{10'000};  ///< Least time between two writes of one series.
  std::size_t remembered = 4096;                   ///< Distinct events remembered.
};

/// A write that the aggregator wants.
struct EventWrite {
  bool create = true;  ///< Else a merge patch of the Event `name`.
  ObjectName name;
  Json body;
  std::string key;  ///< For Lost.
};

class EventAggregator {
 public:
  explicit EventAggregator(EventOptions options) : options_(std::move(options)) {}

  /// Takes one event in; the result is empty when it only raised a count that is not due yet.
  /// `unique` makes the new Event's name unique.
  std::vector<EventWrite> Add(const Event& event, WallTime now, std::uint64_t unique);
  /// Counts that are due to be written. `all`: the ones that are not due yet too, for shutdown.
  std::vector<EventWrite> Due(WallTime now, bool all = false);
  /// When Due has something next.
  std::optional<WallTime> NextDue() const;
  /// The Event of this write does not exist: its next repetition makes a new one.
  void Lost(const std::string& key);

 private:
  struct Entry {
    std::string key;
    ObjectName name;
    WallTime last_seen;
    WallTime last_written;
    std::uint64_t count = 1;
    std::uint64_t written = 1;
  };
  void FollowClock(WallTime now);
  EventWrite SeriesWrite(Entry& entry, WallTime now);
  void Forget(std::list<Entry>::iterator entry, WallTime now, std::vector<EventWrite>* writes);

  EventOptions options_;
  std::list<Entry> entries_;  ///< Latest seen first.
  std::unordered_map<std::string, std::list<Entry>::iterator> by_key_;
};

class EventRecorder {
 public:
  /// `api` must outlive the recorder.
  EventRecorder(Api& api, EventOptions options);
  /// Writes what is queued for at most a second, then stops.
  ~EventRecorder();
  EventRecorder(const EventRecorder&) = delete;
  EventRecorder& operator=(const EventRecorder&) = delete;

  /// Thread-safe, never blocks on the network.
  void Emit(Event event);

  std::uint64_t dropped() const { return dropped_; }
  std::uint64_t written() const { return written_; }

 private:
  void Run();
  void Write(const EventWrite& write);

  Api& api_;
  const EventOptions options_;
  EventAggregator aggregator_;                      ///< Recorder's thread only.
  std::chrono::steady_clock::time_point next_log_;  ///< Recorder's thread only.
  std::atomic<std::uint64_t> dropped_{0};
  std::atomic<std::uint64_t> written_{0};
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Event> queue_;                        ///< Guarded by mutex_.
  bool stopping_ = false;                          ///< Guarded by mutex_.
  std::chrono::steady_clock::time_point stop_by_;  ///< Guarded by mutex_, if stopping_.
  std::thread thread_;
};

}  // namespace rouse::kube
