// Reads what kubectl-rouse shows from the API server. Errors name the object and the remedy.

#pragma once

#include <memory>
#include <string>
#include <vector>

#include "operator/kube/client.h"
#include "operator/kubectl/doctor.h"
#include "operator/kubectl/view.h"
#include "operator/plan/observed.h"

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

  /// What the operator would plan from. `incomplete` says what could not be read and is taken for
  /// not there, for lack of a right; empty when nothing is missing.
  struct Observation {
    plan::Observed observed;
    std::string incomplete;
  };
  Result<Observation> Observe(const kube::ObjectName& name);

  /// Events of a namespace about objects of this kind; about one of them, if `name` is not empty.
  Result<std::vector<kube::Json>> EventsAbout(const std::string& ns, const std::string& kind,
                                              const std::string& name = "");

  /// What the doctor looks at: the ModelServices of `ns` (empty: of all namespaces), and the
  /// cluster. What may not be read is in the evidence as an error; an error here means that nothing
  /// can be said. The operator is looked for in all namespaces, and where that is not allowed in
  /// `operator_ns`.
  Result<Evidence> Examine(const std::string& ns, const std::string& operator_ns);

 private:
  Result<std::vector<kube::Json>> Items(const kube::Resource& resource, const std::string& ns,
                                        const kube::ListOptions& options = {});

  kube::Client& client_;
};

/// The views of these ModelServices, each with its pods out of `pods`, by namespace and name.
/// Objects without a name or uid are left out.
std::vector<ServiceView> MakeViews(const std::vector<kube::Json>& services,
                                   const std::vector<kube::Json>& pods);

}  // namespace rouse::kubectl
