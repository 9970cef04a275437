#include "operator/plan/objects.h"

#include "operator/api/names.h"

namespace rouse::plan {

const Json& At(const Json& value, std::string_view key) {
  static const Json kNothing;
  if (!value.is_object()) return kNothing;
  const auto it = value.find(std::string(key));
  return it == value.end() ? kNothing : *it;
}

std::string Text(const Json& value, std::string_view key) {
  const Json& text = At(value, key);
  return text.is_string() ? text.get<std::string>() : std::string();
}

Json Env(const char* name, std::string value) {
  return {{"name", name}, {"value", std::move(value)}};
}

std::string ControllerUid(const Json& metadata) {
  for (const Json& owner : At(metadata, "ownerReferences")) {
    if (At(owner, "controller") == Json(true)) return Text(owner, "uid");
  }
  return "";
}

Json OwnerReferences(const api::ObjectMeta& owner) {
  return {{{"apiVersion", api::kGroupVersion},
           {"kind", api::kKind},
           {"name", owner.name},
           {"uid", owner.uid},
           {"controller", true},
           {"blockOwnerDeletion", true}}};
}

}  // namespace rouse::plan
