#include "operator/plan/endpoint.h"

#include "operator/api/names.h"
#include "operator/plan/objects.h"

namespace rouse::plan {

Endpoint EndpointFromService(const Json& service) {
  const Json& metadata = At(service, "metadata");
  Endpoint out;
  out.uid = Text(metadata, "uid");
  out.owner_uid = ControllerUid(metadata);
  const Json& spec = At(service, "spec");
  out.selector = At(spec, "selector");
  out.ports = At(spec, "ports");
  return out;
}

Json RenderEndpoint(const api::ModelService& service) {
  const api::ObjectMeta& owner = service.metadata;
  return {{"apiVersion", "v1"},
          {"kind", "Service"},
          {"metadata",
           {{"name", owner.name},
            {"namespace", owner.ns},
            {"labels",
             {{"app.kubernetes.io/name", owner.name},
              {"app.kubernetes.io/managed-by", "rouse"},
              {api::kLabelModelService, owner.name}}},
            {"ownerReferences", OwnerReferences(owner)}}},
          {"spec",
           {{"selector", {{api::kLabelModelService, owner.name}, {api::kLabelRole, "Active"}}},
            {"ports",
             {{{"name", "http"},
               {"port", kServicePort},
               {"protocol", "TCP"},
               {"targetPort", service.spec.engine.port}}}}}}};
}

bool IsAsRendered(const Endpoint& endpoint, const api::ModelService& service) {
  const Json wanted = RenderEndpoint(service)["spec"];
  if (endpoint.selector != wanted["selector"]) return false;
  const Json& port = wanted["ports"][0];
  for (const Json& found : endpoint.ports) {
    if (At(found, "port") == port["port"]) {
      return At(found, "targetPort") == port["targetPort"];
    }
  }
  return false;
}

}  // namespace rouse::plan
