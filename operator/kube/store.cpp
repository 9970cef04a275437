#include "operator/kube/store.h"

namespace rouse::kube {

std::shared_ptr<const Json> KeepWhole(const Json& object) {
  auto kept = std::make_shared<Json>(object);
  const auto metadata = kept->find("metadata");
  if (metadata != kept->end() && metadata->is_object()) {
    metadata->erase("managedFields");
    const auto annotations = metadata->find("annotations");
    if (annotations != metadata->end() && annotations->is_object()) {
      annotations->erase("kubectl.kubernetes.io/last-applied-configuration");
    }
  }
  return kept;
}

}  // namespace rouse::kube
