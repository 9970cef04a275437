// Keeps a Store equal to what the API server has: runs the ListWatch machine on a thread of its own
// against a Client.

#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <future>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "common/http.h"
#include "operator/kube/client.h"
#include "operator/kube/list_watch.h"
#include "operator/kube/store.h"

namespace rouse::kube {

struct InformerOptions {
  Resource resource;
  std::string ns;  ///< Empty: all namespaces.
  std::string label_selector;
  int page_size = 250;
  /// How long a watch may send nothing at all before it counts as dead. Servers send a bookmark
  /// about every minute.
  std::chrono::milliseconds silence{90'000};
  ListWatchOptions list_watch;
  /// Seed of the jitter; 0 takes a random one.
  std::uint64_t seed = 0;
};

/// Plain counters for metrics; readable at any time.
struct InformerCounters {
  std::atomic<std::uint64_t> lists{0};
  std::atomic<std::uint64_t> watches{0};
  std::atomic<std::uint64_t> gone{0};
  std::atomic<std::uint64_t> garbage{0};
  std::atomic<std::uint64_t> broken{0};
  std::atomic<std::uint64_t> events{0};
  std::atomic<std::uint64_t> last_list_us{0};  ///< How long the last full list took.
};

class Informer {
 public:
  /// Starts at once. `client` and `sink` must outlive the informer; `sink` is called on its thread.
  Informer(Client& client, StoreSink& sink, InformerOptions options);
  /// Stops; waits for the thread.
  ~Informer();
  Informer(const Informer&) = delete;
  Informer& operator=(const Informer&) = delete;

  /// True once the first full list is in the store.
  bool synced() const { return synced_; }
  /// Waits for it; false when `timeout` passed first or the informer was stopped.
  bool WaitSynced(std::chrono::milliseconds timeout);

  /// Ends the thread at the next possible moment without waiting for it.
  void Stop();

  const InformerCounters& counters() const { return counters_; }
  /// Why the last request failed; empty while all is well. For readiness messages.
  std::string last_error() const;

 private:
  void Run();
  void DoList(const Command& command);
  FetchedPage Fetch(const std::string& token);
  FetchedPage TakePage(const std::string& token);
  void DoWatch(const Command& command);
  void Deliver(std::vector<StoreEvent> events);
  void NoteError(const Status& status);
  void CopyCounters();
  bool Sleep(std::chrono::milliseconds delay);

  Client& client_;
  StoreSink& sink_;
  const InformerOptions options_;
  ListWatch machine_;  ///< Informer's thread; during a watch the stream's thread on its behalf.
  http::CancelSource cancel_;
  InformerCounters counters_;
  std::atomic<bool> synced_{false};
  std::atomic<bool> stopped_{false};
  std::chrono::steady_clock::time_point list_began_;  ///< Informer's thread.
  /// The page after the one that is being read, and its token. Informer's thread.
  std::pair<std::string, std::future<FetchedPage>> ahead_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::string last_error_;  ///< Guarded by mutex_.
  std::thread thread_;
};

}  // namespace rouse::kube
