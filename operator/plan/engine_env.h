// The engine's environment, and what in it would keep compile caches from being found again. Pure.
//
// vLLM keys its caches by its configuration and by nearly every variable it knows. What Rouse sets
// is the same in every pod, so the key is too, unless the user gives a variable another value in
// each.

#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "operator/api/model_service.h"

namespace rouse::plan {

using json::Json;

/// Where compile caches lie, in the agent's and the engine's containers.
inline constexpr char kStateDir[] = "/rouse/state";

/// What Rouse sets, with the user's variables (spec.engine.env) laid over it. The pod template
/// comes over that when the pod is rendered.
Json EngineEnv(const api::Spec& spec);

/// Whether vLLM's cache key depends on this variable (vLLM 0.26; one that it does not know counts
/// as if it did).
bool IsInCacheKey(std::string_view variable);

/// A variable of the engine that keeps caches from being found in other pods.
struct KeyBreaker {
  std::string variable;
  std::string why;

  bool operator==(const KeyBreaker&) const = default;
};

/// Of the engine as it will run, the pod template's part included; in the order of the variables.
/// None when caches are not reused.
std::vector<KeyBreaker> KeyBreakers(const api::Spec& spec);

/// Whether the engine compiles nothing.
bool IsEager(const api::Spec& spec);

}  // namespace rouse::plan
