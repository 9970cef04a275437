#include "operator/plan/observe.h"

#include <set>
#include <string>

#include "operator/api/names.h"
#include "operator/plan/node.h"
#include "operator/plan/objects.h"

namespace rouse::plan {
namespace {

void AddPod(const Json& pod, Observed& observed) {
  const api::ObjectMeta& meta = observed.service.metadata;
  const Json& metadata = At(pod, "metadata");
  if (Text(metadata, "namespace") != meta.ns) return;
  auto instance = InstanceFromPod(pod);
  if (instance.ok() && instance->owner_uid == meta.uid) {
    observed.instances.push_back(*std::move(instance));
  } else if (const std::string name = Text(metadata, "name"); Ordinal(name, meta.name)) {
    observed.taken_names.push_back(name);
  }
}

void AddService(const Json& service, Observed& observed) {
  const api::ObjectMeta& meta = observed.service.metadata;
  const Json& metadata = At(service, "metadata");
  if (Text(metadata, "namespace") != meta.ns || Text(metadata, "name") != meta.name) return;
  if (At(At(metadata, "labels"), api::kLabelModelService).is_string()) {
    observed.endpoint = EndpointFromService(service);
  } else {
    observed.endpoint_taken = true;
  }
}

}  // namespace

Result<Observed> ObservedFromObjects(const Json& service, const std::vector<Json>& objects) {
  Observed observed;
  ROUSE_ASSIGN_OR_RETURN(observed.service, api::ModelServiceFromJson(service));
  std::size_t nodes = 0;
  std::set<std::string> lost;
  for (const Json& object : objects) {
    const std::string kind = Text(object, "kind");
    if (kind == "Service") {
      AddService(object, observed);
    } else if (kind == "Node") {
      const Node node = NodeFromObject(object);
      ++nodes;
      if (node.lost) lost.insert(node.name);
    } else if (kind == "Pod" || kind.empty()) {
      AddPod(object, observed);
    }
  }
  if (!lost.empty() && CanBeLost(lost.size(), nodes)) {
    for (Instance& instance : observed.instances) instance.node_lost = lost.contains(instance.node);
  }
  return observed;
}

Instance JustCreated(const CreateInstance& action, const api::ObjectMeta& service) {
  Instance i;
  i.ns = service.ns;
  i.name = action.pod;
  i.service = service.name;
  i.owner_uid = service.uid;
  i.role = action.role;
  i.launch_identity = action.launch_identity;
  i.revision = action.revision;
  i.path = action.path;
  i.path_reason = action.path_reason;
  i.begins_without = action.begins_without;
  i.decided_at = action.decided_at;
  i.phase = "Pending";
  i.gated = true;
  return i;
}

}  // namespace rouse::plan
