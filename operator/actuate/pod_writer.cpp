#include "operator/actuate/pod_writer.h"

#include <utility>

#include "operator/api/names.h"

namespace rouse::actuate {

kube::ObjectName PodWriter::Name(const std::string& name) const {
  return {kube::ObjectName::FromKey(key_).ns, name};
}

Result<Json> PodWriter::Patch(const std::string& pod, Json metadata) const {
  auto patched = api_.MergePatch(kube::Pods(), Name(pod), {{"metadata", std::move(metadata)}},
                                 {.field_manager = api::kFieldManager, .strategic = true});
  if (patched.ok()) Remember(*patched);
  return patched;
}

void PodWriter::Remember(const Json& pod) const {
  const auto instance = plan::InstanceFromPod(pod);
  if (!instance.ok()) return;
  pending_.Wrote(key_, *instance, [&] {
    const auto known = cache_.Pod(Name(instance->name).Key());
    return known && known->uid == instance->uid && IsAsNew(*known, *instance);
  });
}

}  // namespace rouse::actuate
