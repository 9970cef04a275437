// What an engine compiles and caches, in two classes, and where it lies below the state folder
// (docs/state-reuse.md). Pure.

#pragma once

#include <span>
#include <string_view>

#include "common/json.h"

namespace rouse::agent {

enum class CacheClass {
  kReusable,  ///< Depends on model, engine and GPU only.
  kMatched,  ///< Found again by a key that the engine takes over its configuration and environment.
};
inline constexpr json::EnumName<CacheClass> kCacheClasses[] = {{CacheClass::kReusable, "Reusable"},
                                                               {CacheClass::kMatched, "Matched"}};
std::string_view ToString(CacheClass of);

/// The folders of a class, relative to the state folder. Each is installed as a whole or not at
/// all.
std::span<const std::string_view> RootsOf(CacheClass of);

/// Of kMatched: vLLM's plan of its memory.
inline constexpr std::string_view kStartupPlanRoot = "vllm/startup_plan";

/// The root of the class that `path` lies below; empty when there is none.
std::string_view RootOf(CacheClass of, std::string_view path);

/// Whether a file or folder of this name stays where it is: locks, what is being written, and what
/// tells more than it serves.
bool StaysBehind(std::string_view name);

}  // namespace rouse::agent
