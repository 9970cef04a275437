// The operator's view of the cluster: stores for ModelServices, their pods, their Services, and
// nodes, already decoded into what decisions need (a thousand pods as JSON would take tens of
// megabytes).
//
// The informers write from their threads, everybody reads from any thread.

#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "operator/api/model_service.h"
#include "operator/kube/store.h"
#include "operator/plan/endpoint.h"
#include "operator/plan/instance.h"
#include "operator/plan/node.h"

namespace rouse::actuate {

using kube::Json;

/// A ModelService, or why its spec cannot be read. metadata and status are there in both cases.
struct StoredService {
  api::ModelService service;
  rouse::Status error;
};

class Cache {
 public:
  /// `on_change` is called with the key "ns/name" of a ModelService whenever it or one of its pods
  /// changed, or the node of one was lost or came back; `on_pod` for each pod that came, changed
  /// (after) or went (nullptr, with its last state in before). Both on an informer's thread, after
  /// the change is visible; must be quick.
  using OnChange = std::function<void(const std::string& key)>;
  using OnPod = std::function<void(const plan::Instance* before, const plan::Instance* after)>;
  Cache(OnChange on_change, OnPod on_pod);

  kube::StoreSink& service_sink() { return services_; }
  kube::StoreSink& pod_sink() { return pods_; }
  kube::StoreSink& endpoint_sink() { return endpoints_; }
  /// Without nodes none is lost.
  kube::StoreSink& node_sink() { return nodes_; }

  /// nullptr when there is none.
  std::shared_ptr<const StoredService> Service(const std::string& key) const {
    return services_.Get(key);
  }
  /// Pods that carry the label of this ModelService, whoever owns them.
  std::vector<std::shared_ptr<const plan::Instance>> PodsOf(const std::string& key) const;
  /// Pods that carry the label of any ModelService of this namespace, whoever owns them.
  std::vector<std::shared_ptr<const plan::Instance>> PodsIn(const std::string& ns) const;
  std::shared_ptr<const plan::Instance> Pod(const std::string& key) const { return pods_.Get(key); }

  /// The Kubernetes Service of this name; nullptr when there is none with a ModelService's label.
  std::shared_ptr<const plan::Endpoint> Endpoint(const std::string& key) const {
    return endpoints_.Get(key);
  }

  /// The namespaces that have ModelServices, each once.
  std::vector<std::string> Namespaces() const;

  /// Another one after any change of a pod, or of what is believed of its node.
  std::uint64_t pods_version() const { return pods_version_; }

  std::size_t service_count() const { return services_.size(); }
  std::size_t pod_count() const { return pods_.size(); }
  std::size_t node_count() const { return nodes_.size(); }
  /// Whether they are believed lost or not.
  std::size_t lost_node_count() const { return lost_nodes_; }

 private:
  std::vector<std::shared_ptr<const plan::Instance>> Indexed(const std::string& entry) const;
  void NodeChanged(const std::string& node, bool was_lost, bool is_lost);

  const OnChange on_change_;
  std::atomic<std::uint64_t> pods_version_{0};
  kube::Store<StoredService> services_;
  kube::Store<plan::Instance> pods_;
  kube::Store<plan::Endpoint> endpoints_;
  kube::Store<plan::Node> nodes_;
  std::atomic<std::size_t> lost_nodes_{0};  ///< Written on the nodes' informer's thread.
};

/// The key of the ModelService that `instance` says it belongs to.
std::string ServiceKey(const plan::Instance& instance);

}  // namespace rouse::actuate
