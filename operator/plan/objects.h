// What is read of, and written into, API objects of any kind. Pure.

#pragma once

#include <string>
#include <string_view>

#include "operator/api/model_service.h"

namespace rouse::plan {

using json::Json;

/// Walks down members of an object that we did not write: anything of an unexpected type reads as
/// absent.
const Json& At(const Json& value, std::string_view key);
std::string Text(const Json& value, std::string_view key);

/// An entry of a container's `env`.
Json Env(const char* name, std::string value);

/// uid of the controlling owner; empty when there is none.
std::string ControllerUid(const Json& metadata);

/// metadata.ownerReferences of what belongs to this ModelService.
Json OwnerReferences(const api::ObjectMeta& owner);

}  // namespace rouse::plan
