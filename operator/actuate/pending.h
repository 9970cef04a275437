// What we have just done and the cache does not show yet.
//
// Between a write's answer and its watch event a second reconcile would not see it: a pod that went
// meanwhile could be replaced twice, a guard claimed for two replicas. An entry lives until the
// cache has seen as much, at most a while. It is only a shortcut: after a restart the first list
// shows the truth. Thread-safe.

#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "operator/plan/observed.h"

namespace rouse::actuate {

/// Whether `shown` is at least as new as `written`, by resourceVersion, which Kubernetes lets
/// clients compare as numbers; true when one of the two is none.
bool IsAsNew(const plan::Instance& shown, const plan::Instance& written);

class Pending {
 public:
  using Time = std::chrono::steady_clock::time_point;
  using Clock = std::function<Time()>;

  explicit Pending(std::chrono::seconds lifetime = std::chrono::seconds(30),
                   Clock clock = std::chrono::steady_clock::now)
      : lifetime_(lifetime), clock_(std::move(clock)) {}

  /// The API server has made this pod, or changed it to this. `known` is asked under the lock
  /// whether the cache has that already: its event may be faster than the answer to the call.
  void Wrote(const std::string& key, const plan::Instance& pod, const std::function<bool()>& known);
  /// The API server has accepted the deletion of the pod with this uid.
  void Deleted(const std::string& key, const std::string& uid);
  /// A pod of somebody else has this name.
  void Taken(const std::string& key, const std::string& name);
  /// The ModelService's Service was just written, or its name is that of somebody else's.
  void WroteEndpoint(const std::string& key, const plan::Endpoint& endpoint);
  void EndpointTaken(const std::string& key);

  /// The cache shows this pod now, or shows that it is gone (`after` is nullptr).
  void Seen(const std::string& key, const std::string& uid, const plan::Instance* after);

  /// Adds what the cache does not show to what was read from it.
  void AddTo(const std::string& key, plan::Observed& observed);

  void Forget(const std::string& key);

 private:
  struct Entry {
    std::map<std::string, std::pair<plan::Instance, Time>> written;  ///< By uid.
    std::map<std::string, Time> deleted;                             ///< By uid.
    std::map<std::string, Time> taken;                               ///< By name.
    std::optional<std::pair<plan::Endpoint, Time>> endpoint;
    std::optional<Time> endpoint_taken;

    bool empty() const {
      return written.empty() && deleted.empty() && taken.empty() && !endpoint && !endpoint_taken;
    }
  };

  void Expire(Entry& entry, Time now) const;

  const std::chrono::seconds lifetime_;
  const Clock clock_;
  std::mutex mutex_;
  std::map<std::string, Entry> entries_;  ///< Guarded by mutex_.
};

}  // namespace rouse::actuate
