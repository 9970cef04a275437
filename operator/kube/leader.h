// Lease-based leader election: at most one operator acts.

#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "operator/kube/api.h"
#include "operator/kube/lease.h"

namespace rouse::kube {

struct LeaderOptions {
  ObjectName lease;      ///< The Lease object, which is made when missing.
  std::string identity;  ///< Unique to this process: pod name plus something random.
  std::string address;   ///< Where the others reach it while it leads; may be empty.
  LeaseTiming timing;
  /// Both are called on the elector's thread. on_lost: stop acting before it returns, or exit; the
  /// elector does not try again afterwards.
  std::function<void()> on_elected;
  std::function<void(const std::string& why)> on_lost;
};

/// "HOST_RANDOM", fit for LeaderOptions::identity.
std::string UniqueIdentity(const std::string& prefix);

class LeaderElector {
 public:
  /// Starts at once. `api` must outlive it and should have a timeout and retries that fit into
  /// renew_deadline (ClientOptions{.timeout = 3s, .retries = 0}). InvalidArgument for a timing that
  /// cannot work.
  static Result<std::unique_ptr<LeaderElector>> Start(Api& api, LeaderOptions options);
  /// Stops, and releases the lease when it is held, so that the next one need not wait.
  ~LeaderElector();
  LeaderElector(const LeaderElector&) = delete;
  LeaderElector& operator=(const LeaderElector&) = delete;

  /// True while we may act. Checks the clock itself: it turns false in time even when the thread
  /// hangs in a call. Thread-safe; ask it before every write.
  bool leading() const;

  /// Who held the lease last we saw; for messages and readiness.
  std::string holder() const;
  /// Its address, unless that is not known or the lease is released.
  std::string holder_address() const;

 private:
  LeaderElector(Api& api, LeaderOptions options);
  void Run();
  void Read();
  Status Write(const std::string& holder);
  void Lose();
  void Release();
  void NoteError(const Status& status);
  bool Sleep();

  Api& api_;
  const LeaderOptions options_;
  // Elector's thread only:
  LeaseView view_;
  Json lease_;          ///< The object as last read or written; null when there is none.
  bool known_ = false;  ///< The last reading succeeded, so lease_ is not stale by a lost answer.
  std::string last_error_;

  std::atomic<bool> leading_{false};
  std::atomic<std::int64_t> renewed_ticks_{0};  ///< view_.renewed_at for other threads.
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool stopping_ = false;  ///< Guarded by mutex_.
  std::string holder_;     ///< Guarded by mutex_.
  std::string address_;    ///< Guarded by mutex_: of that holder.
  std::thread thread_;
};

}  // namespace rouse::kube
