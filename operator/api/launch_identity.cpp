#include "operator/api/launch_identity.h"

#include "common/sha256.h"
#include "operator/api/names.h"

namespace rouse::api {
namespace {

constexpr std::size_t kDigits = 32;  // Fits a label value (63); 128 bits.

// What the template says about the engine container, as far as it may change the weights.
Json EngineOverlay(const Json& pod_template) {
  Json out = Json::object();
  const auto spec = pod_template.find("spec");
  if (spec == pod_template.end() || !spec->is_object()) return out;
  const auto containers = spec->find("containers");
  if (containers == spec->end() || !containers->is_array()) return out;
  for (const Json& container : *containers) {
    if (!container.is_object() || container.value("name", Json()) != Json(kEngineContainer))
      continue;
    for (const char* key : {"image", "command", "args", "env", "envFrom"}) {
      if (container.contains(key)) out[key] = container[key];
    }
  }
  return out;
}

}  // namespace

std::string LaunchIdentity(const Spec& spec) {
  const Json whole = ToJson(spec);
  const Json identity = {{"version", 1},
                         {"model", whole["model"]},
                         {"image", spec.engine.image},
                         {"args", spec.engine.args},
                         {"env", spec.engine.env},
                         {"port", spec.engine.port},
                         {"overlay", EngineOverlay(spec.pod_template)}};
  return Sha256Hex(json::Canonical(identity)).substr(0, kDigits);
}

std::string EngineIdentity(const Spec& spec) {
  const Json whole = ToJson(spec);
  const Json overlay = EngineOverlay(spec.pod_template);
  return Sha256Hex(json::Canonical({{"version", 1},
                                    {"model", whole["model"]["name"]},
                                    {"revision", whole["model"]["revision"]},
                                    {"image", spec.engine.image},
                                    {"overlay", overlay.value("image", Json())}}))
      .substr(0, kDigits);
}

std::string Revision(const Spec& spec) {
  Json whole = ToJson(spec);
  whole.erase("replicas");
  whole.erase("guards");
  whole.erase("rollout");
  whole["fastStart"].erase("weights");
  whole["fastStart"]["state"].erase("copies");  // Agents are told.
  whole["fastStart"].erase("profile");          // Its choices are spelled out beside it.
  return Sha256Hex(json::Canonical(whole)).substr(0, kDigits);
}

}  // namespace rouse::api
