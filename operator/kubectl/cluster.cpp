#include "operator/kubectl/cluster.h"

#include <algorithm>
#include <iterator>

#include "operator/api/names.h"
#include "operator/plan/observe.h"

namespace rouse::kubectl {
namespace {

// Of the chart's Deployment, whatever the release is called; and the operator's default Lease.
constexpr char kOperatorLabels[] =
    "app.kubernetes.io/part-of=rouse,app.kubernetes.io/component=operator";
constexpr char kLease[] = "rouse-operator";

kube::Resource Deployments() {
  return {"apps", "v1", "deployments", "Deployment", true};
}
kube::Resource PersistentVolumeClaims() {
  return {"", "v1", "persistentvolumeclaims", "PersistentVolumeClaim", true};
}
kube::Resource CustomResourceDefinitions() {
  return {"apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition",
          false};
}

// What to do about an error that the API server's words do not tell.
Status WithRemedy(Status status, const kube::ObjectName& name) {
  if (status.code() != StatusCode::kNotFound) return status;
  // So it says of kinds that it does not know, and of objects of those it does: `... not found`.
  if (status.message().find("the server could not find the requested resource") !=
      std::string::npos) {
    return NotFound(
        "this cluster has no ModelServices (CustomResourceDefinition modelservices.rouse.dev is "
        "missing): install Rouse with its Helm chart, or choose another cluster with --context");
  }
  return NotFound("ModelService " + name.Key() + " is not there; `kubectl rouse status -n " +
                  name.ns + "` lists those of the namespace, -n chooses another");
}

}  // namespace

std::string PodSelector(const std::string& name) {
  return name.empty() ? api::kLabelModelService : std::string(api::kLabelModelService) + "=" + name;
}

Status CheckServiceName(const std::string& name) {
  const auto allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-';
  };
  if (!name.empty() && std::all_of(name.begin(), name.end(), allowed)) return {};
  return InvalidArgument("\"" + name +
                         "\" cannot be the name of a ModelService: lower-case letters, digits and "
                         "'-' are expected");
}

Result<ServiceView> Cluster::Service(const kube::ObjectName& name) {
  ROUSE_RETURN_IF_ERROR(CheckServiceName(name.name));
  auto service = client_.Get(kube::ModelServices(), name);
  if (!service.ok()) return WithRemedy(service.status(), name);
  ROUSE_ASSIGN_OR_RETURN(
      const kube::ObjectList pods,
      client_.List(kube::Pods(), name.ns,
                   {.label_selector = PodSelector(name.name), .field_selector = ""}));
  return MakeView(*service, pods.items);
}

Result<std::vector<ServiceView>> Cluster::Services(const std::string& ns) {
  auto services = client_.List(kube::ModelServices(), ns, {});
  if (!services.ok()) return WithRemedy(services.status(), {ns, ""});
  ROUSE_ASSIGN_OR_RETURN(
      const kube::ObjectList pods,
      client_.List(kube::Pods(), ns, {.label_selector = PodSelector(), .field_selector = ""}));
  return MakeViews(services->items, pods.items);
}

Result<Cluster::Observation> Cluster::Observe(const kube::ObjectName& name) {
  ROUSE_RETURN_IF_ERROR(CheckServiceName(name.name));
  auto service = client_.Get(kube::ModelServices(), name);
  if (!service.ok()) return WithRemedy(service.status(), name);
  ROUSE_ASSIGN_OR_RETURN(
      kube::ObjectList pods,
      client_.List(kube::Pods(), name.ns,
                   {.label_selector = PodSelector(name.name), .field_selector = ""}));
  std::vector<kube::Json> objects = std::move(pods.items);
  std::string incomplete;
  if (auto endpoint = client_.Get(kube::Services(), name); endpoint.ok()) {
    objects.push_back(*std::move(endpoint));
  } else if (endpoint.status().code() != StatusCode::kNotFound) {
    return endpoint.status();
  }
  if (auto nodes = client_.List(kube::Nodes(), "", {}); nodes.ok()) {
    std::move(nodes->items.begin(), nodes->items.end(), std::back_inserter(objects));
  } else if (nodes.status().code() == StatusCode::kFailedPrecondition) {
    incomplete = "no node is taken for lost: " + nodes.status().message();
  } else {
    return nodes.status();
  }
  auto observed = plan::ObservedFromObjects(*service, objects);
  if (!observed.ok()) {
    return observed.status().WithContext("the operator cannot read ModelService " + name.Key());
  }
  return Observation{*std::move(observed), std::move(incomplete)};
}

Result<std::vector<kube::Json>> Cluster::EventsAbout(const std::string& ns, const std::string& kind,
                                                     const std::string& name) {
  std::string selector = "regarding.kind=" + kind;
  if (!name.empty()) selector += ",regarding.name=" + name;
  return Items(kube::Events(), ns, {.label_selector = "", .field_selector = selector});
}

Result<std::vector<kube::Json>> Cluster::Items(const kube::Resource& resource,
                                               const std::string& ns,
                                               const kube::ListOptions& options) {
  ROUSE_ASSIGN_OR_RETURN(kube::ObjectList list, client_.List(resource, ns, options));
  return std::move(list.items);
}

Result<Evidence> Cluster::Examine(const std::string& ns, const std::string& operator_ns) {
  Evidence evidence;
  evidence.crd = client_.Get(CustomResourceDefinitions(), {"", "modelservices.rouse.dev"});
  auto services = Services(ns);
  if (services.ok()) {
    evidence.services = *std::move(services);
  } else if (services.status().code() != StatusCode::kNotFound) {
    return services.status();  // Without the definition there are none.
  }
  const kube::ListOptions operators{.label_selector = kOperatorLabels, .field_selector = ""};
  evidence.operator_namespace = operator_ns;
  evidence.deployments = Items(Deployments(), "", operators);
  if (!evidence.deployments.ok())
    evidence.deployments = Items(Deployments(), operator_ns, operators);
  if (evidence.deployments.ok() && !evidence.deployments->empty()) {
    evidence.operator_namespace = kube::NameOf(evidence.deployments->front()).ns;
  }
  evidence.lease = client_.Get(kube::Leases(), {evidence.operator_namespace, kLease});
  for (const ServiceView& view : evidence.services) {
    const std::string& where = view.service.metadata.ns;
    const auto [entry, is_new] = evidence.namespaces.try_emplace(where);
    if (!is_new) continue;
    entry->second.trust = client_.Get(kube::ConfigMaps(), {where, api::kTrustConfigMap});
    entry->second.claims = Items(PersistentVolumeClaims(), where);
    entry->second.pod_warnings =
        Items(kube::Events(), where,
              {.label_selector = "", .field_selector = "regarding.kind=Pod,type=Warning"});
  }
  return evidence;
}

std::vector<ServiceView> MakeViews(const std::vector<kube::Json>& services,
                                   const std::vector<kube::Json>& pods) {
  std::vector<ServiceView> views;
  for (const kube::Json& service : services) {
    if (auto view = MakeView(service, pods); view.ok()) views.push_back(*std::move(view));
  }
  std::sort(views.begin(), views.end(),
            [](const ServiceView& a, const ServiceView& b) { return a.Name() < b.Name(); });
  return views;
}

}  // namespace rouse::kubectl
