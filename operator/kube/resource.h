// Which kind of object a call is about, and how objects are named. Pure.

#pragma once

#include <compare>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace rouse::kube {

using Json = nlohmann::json;

/// A member of an object that we did not write: empty when it is absent or no string.
std::string StringAt(const Json& object, std::string_view key);

/// One resource of the API: what stands in URLs and in `apiVersion` and `kind`.
struct Resource {
  std::string group;  ///< Empty for the core group.
  std::string version;
  std::string plural;
  std::string kind;
  bool namespaced = true;
  bool named = true;  ///< False of what is asked and answered by creating it, and kept nowhere.

  /// "v1", "apps/v1".
  std::string ApiVersion() const;

  /// "/api/v1/namespaces/NS/pods/NAME/SUBRESOURCE" with every part percent-encoded. An empty `ns`
  /// of a namespaced resource means all namespaces (lists and watches only).
  std::string Path(std::string_view ns, std::string_view name = "",
                   std::string_view subresource = "") const;

  bool operator==(const Resource&) const = default;
};

// Functions, not constants: other static objects may use them while the program starts.
inline Resource Pods() {
  return {"", "v1", "pods", "Pod", true};
}
inline Resource Nodes() {
  return {"", "v1", "nodes", "Node", false};
}
inline Resource Services() {
  return {"", "v1", "services", "Service", true};
}
inline Resource ConfigMaps() {
  return {"", "v1", "configmaps", "ConfigMap", true};
}
inline Resource Secrets() {
  return {"", "v1", "secrets", "Secret", true};
}
inline Resource TokenReviews() {
  return {"authentication.k8s.io", "v1", "tokenreviews", "TokenReview", false, false};
}
inline Resource Events() {
  return {"events.k8s.io", "v1", "events", "Event", true};
}
inline Resource Leases() {
  return {"coordination.k8s.io", "v1", "leases", "Lease", true};
}
inline Resource ModelServices() {
  return {"rouse.dev", "v1alpha1", "modelservices", "ModelService", true};
}

/// Name of one object; `ns` is empty for cluster-scoped ones.
struct ObjectName {
  std::string ns;
  std::string name;

  /// The key in stores and queues: "ns/name", or "name" without a namespace.
  std::string Key() const { return ns.empty() ? name : ns + "/" + name; }
  static ObjectName FromKey(std::string_view key);

  auto operator<=>(const ObjectName&) const = default;
};

/// metadata.namespace and metadata.name; empty where missing.
ObjectName NameOf(const Json& object);

/// A string of metadata ("uid", "resourceVersion", ...); empty when missing or no string.
std::string MetaString(const Json& object, std::string_view field);

/// Label and annotation values; empty when missing.
std::string Label(const Json& object, std::string_view name);
std::string Annotation(const Json& object, std::string_view name);

/// An owner reference to `owner` with controller and blockOwnerDeletion set.
Json ControllerReference(const Json& owner, const Resource& resource);

/// uid of the owner reference with controller = true; empty when there is none.
std::string ControllerUid(const Json& object);

/// Names an object in messages: "pod default/demo-0".
std::string Describe(const Resource& resource, const ObjectName& name);

}  // namespace rouse::kube
