#include "operator/plan/overlay.h"

#include <map>
#include <string>
#include <vector>

namespace rouse::plan {
namespace {

const std::vector<std::string>* ListKey(const std::string& field) {
  static const std::map<std::string, std::vector<std::string>> kKeys = {
      {"containers", {"name"}},
      {"initContainers", {"name"}},
      {"volumes", {"name"}},
      {"env", {"name"}},
      {"imagePullSecrets", {"name"}},
      {"resourceClaims", {"name"}},
      {"volumeMounts", {"mountPath"}},
      {"volumeDevices", {"devicePath"}},
      {"ports", {"containerPort"}},
      {"tolerations", {"key", "effect"}},
      {"topologySpreadConstraints", {"topologyKey"}},
      {"hostAliases", {"ip"}},
  };
  const auto it = kKeys.find(field);
  return it == kKeys.end() ? nullptr : &it->second;
}

bool SameKey(const Json& a, const Json& b, const std::vector<std::string>& key) {
  if (!a.is_object() || !b.is_object()) return false;
  for (const std::string& part : key) {
    if (a.value(part, Json()) != b.value(part, Json())) return false;
  }
  return true;
}

Json OverlayList(Json base, const Json& patch, const std::vector<std::string>& key) {
  for (const Json& item : patch) {
    Json* there = nullptr;
    for (Json& candidate : base) {
      if (SameKey(candidate, item, key)) there = &candidate;
    }
    if (there != nullptr) {
      *there = Overlay(std::move(*there), item);
    } else {
      base.push_back(Overlay(Json::object(), item));
    }
  }
  return base;
}

}  // namespace

Json Overlay(Json base, const Json& patch) {
  if (!patch.is_object()) return patch;
  if (!base.is_object()) base = Json::object();
  for (const auto& [field, value] : patch.items()) {
    if (value.is_null()) {
      base.erase(field);
      continue;
    }
    const std::vector<std::string>* key = value.is_array() ? ListKey(field) : nullptr;
    if (key != nullptr) {
      Json list = base.contains(field) && base[field].is_array() ? base[field] : Json::array();
      base[field] = OverlayList(std::move(list), value, *key);
    } else {
      base[field] = Overlay(base.value(field, Json()), value);
    }
  }
  return base;
}

}  // namespace rouse::plan
