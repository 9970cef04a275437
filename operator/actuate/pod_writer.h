// How the pods of one ModelService are changed.

#pragma once

#include <string>

#include "operator/actuate/cache.h"
#include "operator/actuate/pending.h"
#include "operator/kube/api.h"

namespace rouse::actuate {

/// References must outlive it. Thread-safe.
class PodWriter {
 public:
  /// `key` is the ModelService's, "ns/name".
  PodWriter(kube::Api& api, const Cache& cache, Pending& pending, std::string key)
      : api_(api), cache_(cache), pending_(pending), key_(std::move(key)) {}

  /// Of an object of this name in its namespace.
  kube::ObjectName Name(const std::string& name) const;

  /// Changes labels and annotations of the pod with the uid, or of the resourceVersion, that
  /// `metadata` names. The pod as it is then.
  Result<Json> Patch(const std::string& pod, Json metadata) const;

  Result<Json> Get(const std::string& pod) const { return api_.Get(kube::Pods(), Name(pod)); }

  /// The API server has answered with this pod: the next plan sees it, whatever the cache shows.
  void Remember(const Json& pod) const;

  const std::string& key() const { return key_; }

 private:
  kube::Api& api_;
  const Cache& cache_;
  Pending& pending_;
  const std::string key_;
};

}  // namespace rouse::actuate
