// Reads what kubectl-rouse shows from the API server. Errors name the object and the remedy.

#pragma once

#include <memory>
#include <string>
#include <vector>

#include "operator/kube/client.h"
#include "operator/kubectl/view.h"

namespace rouse::kubectl {

/// Pods of any ModelService; with `name`, of that one.
std::string PodSelector(const std::string& name = "");

/// InvalidArgument for what no ModelService can be called.
Status CheckServiceName(const std::string& name);

/// Thread-safe; every call blocks. `client` must outlive it.
class Cluster {
 public:
  explicit Cluster(kube::Client& client) : client_(client) {}

  Result<ServiceView> Service(const kube::ObjectName& name);
  /// All of a namespace, or of all when `ns` is empty, by namespace and name.
  Result<std::vector<ServiceView>> Services(const std::string& ns);

 private:
  kube::Client& client_;
};

/// The views of these ModelServices, each with its pods out of `pods`, by namespace and name.
/// Objects without a name or uid are left out.
std::vector<ServiceView> MakeViews(const std::vector<kube::Json>& services,
                                   const std::vector<kube::Json>& pods);

}  // namespace rouse::kubectl
