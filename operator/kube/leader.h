// Lease-based leader election: at most one operator acts.

#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
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

  /// Whether the last renewal held and was sent no longer than `age` ago; one that was sent earlier
  /// is followed by another one now. For what cannot be made conditional itself, and must be done
  /// neither by somebody who only believes to lead, nor by somebody whose writes arrive no more.
  /// Those who ask at the same time share one renewal. May block for two calls; thread-safe; not to
  /// be asked from the callbacks.
  Status Confirm(std::chrono::milliseconds age);

  /// Who held the lease last we saw; for messages and readiness.
  std::string holder() const;
  /// Its address, unless that is not known or the lease is released.
  std::string holder_address() const;

 private:
  LeaderElector(Api& api, LeaderOptions options);
  void Run();
  Status Attempt();
  void Read();
  Status Write(const std::string& holder);
  void Lose();
  void Release();
  void NoteError(const Status& status);
  bool Sleep();
  std::uint64_t Asked() const;
  void Answer(std::uint64_t asked, const Status& held);

  Api& api_;
  const LeaderOptions options_;
  // Elector's thread only:
  LeaseView view_;
  Json lease_;          ///< The object as last read or written; null when there is none.
  bool known_ = false;  ///< The last reading succeeded, so lease_ is not stale by a lost answer.
  bool lost_ = false;   ///< It ends.
  bool fresh_ = false;  ///< lease_ is what the last write returned, so it need not be read again.
  std::string last_error_;

  std::atomic<bool> leading_{false};
  std::atomic<std::int64_t> renewed_ticks_{0};  ///< view_.renewed_at for other threads.
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool stopping_ = false;  ///< Guarded by mutex_.
  // Confirmations, each with a number. Guarded by mutex_:
  std::uint64_t asked_ = 0;     ///< The last one that was asked for.
  std::uint64_t answered_ = 0;  ///< The last one whose attempt has ended...
  Status answer_;               ///< ...like this.
  bool ended_ = false;          ///< There will be no more attempts.
  std::string holder_;          ///< Guarded by mutex_.
  std::string address_;         ///< Guarded by mutex_: of that holder.
  std::thread thread_;
};

}  // namespace rouse::kube
