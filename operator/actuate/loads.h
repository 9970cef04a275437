// What agents told of their engines' load: in memory only, since it changes all the time and is of
// no use once it is old. Thread-safe.

#pragma once

#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>

#include "operator/plan/load.h"

namespace rouse::actuate {

class Loads {
 public:
  /// `told` is of the pod with this uid, and replaces what was told before. What is too old to be
  /// used is dropped in time.
  void Put(const std::string& uid, const plan::ToldLoad& told);

  std::optional<plan::ToldLoad> Get(const std::string& uid) const;

  std::size_t size() const;

 private:
  mutable std::mutex mutex_;
  std::unordered_map<std::string, plan::ToldLoad> loads_;
  std::size_t prune_at_ = 64;  ///< This many are looked through once.
};

}  // namespace rouse::actuate
