#include "operator/actuate/cache.h"

#include <set>

#include <utility>

#include "common/log.h"

namespace rouse::actuate {
namespace {

std::shared_ptr<const StoredService> ProjectService(const Json& object) {
  auto stored = std::make_shared<StoredService>();
  auto service = api::ModelServiceFromJson(object);
  if (service.ok()) {
    stored->service = *std::move(service);
    return stored;
  }
  // Kept all the same, so that its status can tell what is wrong with it.
  stored->error = service.status();
  auto meta = api::ObjectMetaFromJson(object);
  if (!meta.ok()) {
    log::Error("a ModelService without a name or uid is ignored",
               {{"error", meta.status().ToString()}});
    return nullptr;
  }
  stored->service.metadata = *std::move(meta);
  if (const auto status = object.find("status"); status != object.end()) {
    if (auto read = api::StatusFromJson(*status, "status"); read.ok()) {
      stored->service.status = *std::move(read);
    }
  }
  return stored;
}

std::shared_ptr<const plan::Instance> ProjectPod(const Json& object) {
  auto instance = plan::InstanceFromPod(object);
  if (!instance.ok()) return nullptr;
  return std::make_shared<const plan::Instance>(*std::move(instance));
}

}  // namespace

std::string ServiceKey(const plan::Instance& instance) {
  return kube::ObjectName{instance.ns, instance.service}.Key();
}

Cache::Cache(OnChange on_change, OnPod on_pod)
    : services_(ProjectService, {},
                [on_change](const std::string& key, const auto&, const auto&) { on_change(key); }),
      pods_(
          ProjectPod, [](const plan::Instance& i) { return std::vector{ServiceKey(i)}; },
          [on_change, on_pod](const std::string&, const auto& before, const auto& after) {
            on_pod(before.get(), after.get());
            if (before) on_change(ServiceKey(*before));
            if (after && (!before || ServiceKey(*before) != ServiceKey(*after))) {
              on_change(ServiceKey(*after));
            }
          }),
      endpoints_(
          [](const Json& object) {
            return std::make_shared<const plan::Endpoint>(plan::EndpointFromService(object));
          },
          {}, [on_change](const std::string& key, const auto&, const auto&) { on_change(key); }) {}

std::vector<std::string> Cache::Namespaces() const {
  std::set<std::string> found;
  for (const auto& stored : services_.All()) found.insert(stored->service.metadata.ns);
  return {found.begin(), found.end()};
}

}  // namespace rouse::actuate
