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

// Beside the keys of ModelServices in the pods' index; no name of theirs begins so.
std::string OnNode(const std::string& node) {
  return "@" + node;
}
std::string OfNamespace(const std::string& ns) {
  return "%" + ns;
}

}  // namespace

std::string ServiceKey(const plan::Instance& instance) {
  return kube::ObjectName{instance.ns, instance.service}.Key();
}

Cache::Cache(OnChange on_change, OnPod on_pod)
    : on_change_(on_change),
      services_(ProjectService, {},
                [on_change](const std::string& key, const auto&, const auto&) { on_change(key); }),
      pods_(
          ProjectPod,
          [](const plan::Instance& i) {
            return std::vector{ServiceKey(i), OnNode(i.node), OfNamespace(i.ns)};
          },
          [this, on_change, on_pod](const std::string&, const auto& before, const auto& after) {
            ++pods_version_;
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
          {}, [on_change](const std::string& key, const auto&, const auto&) { on_change(key); }),
      nodes_(
          [](const Json& object) {
            return std::make_shared<const plan::Node>(plan::NodeFromObject(object));
          },
          {},
          [this](const std::string& key, const auto& before, const auto& after) {
            NodeChanged(key, before && before->lost, after && after->lost);
          }) {}

// Whether others are believed lost may have changed with it.
void Cache::NodeChanged(const std::string& node, bool was_lost, bool is_lost) {
  ++pods_version_;  // How many nodes there are has a say in whether those that are lost are
                    // believed to be.
  if (was_lost == is_lost) return;
  if (is_lost) {
    ++lost_nodes_;
  } else {
    --lost_nodes_;
  }
  std::set<std::string> services;
  const auto add = [&](const std::string& name) {
    for (const auto& pod : pods_.ByIndex(OnNode(name))) services.insert(ServiceKey(*pod));
  };
  add(node);
  for (const auto& other : nodes_.All()) {
    if (other->lost) add(other->name);
  }
  for (const std::string& key : services) on_change_(key);
}

std::vector<std::shared_ptr<const plan::Instance>> Cache::PodsOf(const std::string& key) const {
  return Indexed(key);
}

std::vector<std::shared_ptr<const plan::Instance>> Cache::PodsIn(const std::string& ns) const {
  return Indexed(OfNamespace(ns));
}

std::vector<std::shared_ptr<const plan::Instance>> Cache::Indexed(const std::string& entry) const {
  auto pods = pods_.ByIndex(entry);
  if (lost_nodes_ == 0 || !plan::CanBeLost(lost_nodes_, nodes_.size())) return pods;
  for (auto& pod : pods) {
    const auto node = nodes_.Get(pod->node);
    if (!node || !node->lost) continue;
    auto lost = std::make_shared<plan::Instance>(*pod);
    lost->node_lost = true;
    pod = std::move(lost);
  }
  return pods;
}

std::vector<std::string> Cache::Namespaces() const {
  std::set<std::string> found;
  for (const auto& stored : services_.All()) found.insert(stored->service.metadata.ns);
  return {found.begin(), found.end()};
}

}  // namespace rouse::actuate
