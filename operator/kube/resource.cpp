#include "operator/kube/resource.h"

namespace rouse::kube {
namespace {

// The same rule as http::UrlEncode, kept here because this room links no I/O.
std::string Encode(std::string_view text) {
  constexpr char kHex[] = "0123456789ABCDEF";
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    const bool unreserved = (byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z') ||
                            (byte >= '0' && byte <= '9') || byte == '-' || byte == '.' ||
                            byte == '_' || byte == '~';
    if (unreserved) {
      out += c;
    } else {
      out += {'%', kHex[byte >> 4], kHex[byte & 15]};
    }
  }
  return out;
}

const Json* Metadata(const Json& object) {
  if (!object.is_object()) return nullptr;
  const auto it = object.find("metadata");
  return it == object.end() || !it->is_object() ? nullptr : &*it;
}

std::string StringIn(const Json* object, std::string_view field) {
  return object == nullptr ? std::string() : StringAt(*object, field);
}

std::string StringInMap(const Json& object, const char* map, std::string_view name) {
  const Json* metadata = Metadata(object);
  if (metadata == nullptr) return {};
  const auto it = metadata->find(map);
  return it == metadata->end() || !it->is_object() ? std::string() : StringIn(&*it, name);
}

}  // namespace

std::string StringAt(const Json& object, std::string_view key) {
  if (!object.is_object()) return {};
  const auto it = object.find(std::string(key));
  return it == object.end() || !it->is_string() ? std::string() : it->get<std::string>();
}

std::string Resource::ApiVersion() const {
  return group.empty() ? version : group + "/" + version;
}

std::string Resource::Path(std::string_view ns, std::string_view name,
                           std::string_view subresource) const {
  std::string path = group.empty() ? "/api/" : "/apis/" + Encode(group) + "/";
  path += Encode(version);
  if (namespaced && !ns.empty()) path += "/namespaces/" + Encode(ns);
  path += "/" + Encode(plural);
  if (!name.empty()) path += "/" + Encode(name);
  if (!subresource.empty()) path += "/" + Encode(subresource);
  return path;
}

ObjectName ObjectName::FromKey(std::string_view key) {
  const auto slash = key.find('/');
  if (slash == std::string_view::npos) return {"", std::string(key)};
  return {std::string(key.substr(0, slash)), std::string(key.substr(slash + 1))};
}

ObjectName NameOf(const Json& object) {
  return {MetaString(object, "namespace"), MetaString(object, "name")};
}

std::string MetaString(const Json& object, std::string_view field) {
  return StringIn(Metadata(object), field);
}

std::string Label(const Json& object, std::string_view name) {
  return StringInMap(object, "labels", name);
}

std::string Annotation(const Json& object, std::string_view name) {
  return StringInMap(object, "annotations", name);
}

Json ControllerReference(const Json& owner, const Resource& resource) {
  return {{"apiVersion", resource.ApiVersion()},
          {"kind", resource.kind},
          {"name", MetaString(owner, "name")},
          {"uid", MetaString(owner, "uid")},
          {"controller", true},
          {"blockOwnerDeletion", true}};
}

std::string ControllerUid(const Json& object) {
  const Json* metadata = Metadata(object);
  if (metadata == nullptr) return {};
  const auto owners = metadata->find("ownerReferences");
  if (owners == metadata->end() || !owners->is_array()) return {};
  for (const Json& owner : *owners) {
    if (!owner.is_object()) continue;
    const auto controller = owner.find("controller");
    if (controller != owner.end() && controller->is_boolean() && controller->get<bool>()) {
      return StringIn(&owner, "uid");
    }
  }
  return {};
}

std::string Describe(const Resource& resource, const ObjectName& name) {
  std::string text;
  for (const char c : resource.kind) text += static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c);
  return text + " " + name.Key();
}

}  // namespace rouse::kube
