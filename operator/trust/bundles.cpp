#include "operator/trust/bundles.h"

#include "operator/api/names.h"

namespace rouse::trust {
namespace {

/// Somebody may have changed or deleted it meanwhile.
constexpr std::chrono::seconds kLookAgain{60};

kube::Json Render(const std::string& ns, const std::string& bundle) {
  return {{"apiVersion", "v1"},
          {"kind", "ConfigMap"},
          {"metadata",
           {{"name", api::kTrustConfigMap},
            {"namespace", ns},
            {"labels", {{"app.kubernetes.io/managed-by", "rouse"}}}}},
          {"data", {{api::kTrustBundleKey, bundle}}}};
}

bool Holds(const kube::Json& map, const std::string& bundle) {
  const auto data = map.find("data");
  return data != map.end() && data->is_object() && data->contains(api::kTrustBundleKey) &&
         data->at(api::kTrustBundleKey) == bundle;
}

}  // namespace

Status Bundles::Ensure(const std::string& ns, const std::string& bundle, Clock::time_point now) {
  {
    const std::lock_guard lock(mutex_);
    const auto found = written_.find(ns);
    if (found != written_.end() && found->second.bundle == bundle &&
        now < found->second.at + kLookAgain) {
      return {};
    }
  }
  const auto there = api_.Get(kube::ConfigMaps(), {ns, api::kTrustConfigMap});
  if (!there.ok() && there.status().code() != StatusCode::kNotFound) return there.status();
  if (!there.ok() || !Holds(*there, bundle)) {
    const auto applied =
        api_.Apply(kube::ConfigMaps(), Render(ns, bundle),
                   {.field_manager = api::kFieldManager, .force = true, .subresource = ""});
    if (!applied.ok()) return applied.status();
  }
  const std::lock_guard lock(mutex_);
  written_[ns] = {bundle, now};
  return {};
}

Status Bundles::EnsureAll(const std::vector<std::string>& namespaces, const std::string& bundle,
                          Clock::time_point now) {
  Status first;
  for (const std::string& ns : namespaces) {
    const Status done = Ensure(ns, bundle, now);
    if (first.ok()) first = done;
  }
  return first;
}

}  // namespace rouse::trust
