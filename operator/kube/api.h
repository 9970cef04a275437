// The calls that the operator makes to the API server. An interface, so that whoever uses it can be
// tested without a server; client.h has the real one.
//
// Objects are JSON as the server sends it. Errors: see ApiError::ToStatus, and Unavailable or
// DeadlineExceeded when the server cannot be reached; messages name the call and the object.
// Thread-safe; every call blocks.

#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "common/result.h"
#include "operator/kube/resource.h"

namespace rouse::kube {

struct ListOptions {
  std::string label_selector;
  std::string field_selector;
  int page_size = 250;  ///< Objects a request.
};

struct ObjectList {
  std::vector<Json> items;  ///< With apiVersion and kind, which servers leave out in lists.
  std::string resource_version;
};

struct ApplyOptions {
  std::string field_manager;
  bool force = true;  ///< Take over fields that another manager owns; else Conflict.
  std::string subresource;
};

struct PatchOptions {
  std::string field_manager;
  std::string subresource;  ///< "status", "scale"; empty: the object itself.
  /// As a strategic merge patch, which only Kubernetes' own kinds know: for maps the same, and a
  /// sixth less work for the API server where the object is a pod.
  bool strategic = false;
};

enum class Propagation { kBackground, kForeground, kOrphan };

struct DeleteOptions {
  std::string uid;               ///< Only if the object has this uid, else Conflict. Empty: any.
  std::string resource_version;  ///< Only if unchanged since, else Conflict. Empty: any.
  Propagation propagation = Propagation::kBackground;
  std::optional<std::chrono::seconds> grace;  ///< Unset: what the object says.
};

class Api {
 public:
  virtual ~Api() = default;

  virtual Result<Json> Get(const Resource& resource, const ObjectName& name) = 0;

  /// All objects, page by page; starts over when the server forgets the list in the middle (410).
  /// An empty `ns` lists all namespaces.
  virtual Result<ObjectList> List(const Resource& resource, const std::string& ns,
                                  const ListOptions& options) = 0;

  /// Namespace and name are taken from the object's metadata; apiVersion and kind are filled in.
  virtual Result<Json> Create(const Resource& resource, const Json& object) = 0;

  /// Replaces the object; metadata.resourceVersion makes it conditional (Conflict).
  virtual Result<Json> Update(const Resource& resource, const Json& object) = 0;

  /// Server-side apply: creates the object or makes the given fields so.
  virtual Result<Json> Apply(const Resource& resource, const Json& object,
                             const ApplyOptions& options) = 0;

  /// JSON merge patch. A metadata.resourceVersion in the patch makes it conditional (Conflict).
  virtual Result<Json> MergePatch(const Resource& resource, const ObjectName& name,
                                  const Json& patch, const PatchOptions& options) = 0;

  /// Asks for deletion; ok does not mean that the object is gone already. NotFound when it is.
  virtual Status Delete(const Resource& resource, const ObjectName& name,
                        const DeleteOptions& options) = 0;
};

}  // namespace rouse::kube
