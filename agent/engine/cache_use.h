// What an engine says about its lookups in compile caches (docs/protocols.md §3), decoded strictly.
//
// Pure: text in, values out. An error names the field.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/json.h"

namespace rouse::agent {

inline constexpr std::size_t kMaxCacheLookups = 64;
inline constexpr std::size_t kMaxCacheFactors = 32;
inline constexpr std::size_t kMaxCacheText = 2048;

/// All lookups of one kind.
struct CacheLookup {
  std::string cache;  ///< One of kCacheNames.
  std::uint64_t hits = 0;
  std::uint64_t misses = 0;
  std::string where;                 ///< The folder or file, as the engine sees it.
  std::string reason;                ///< Of a miss: why.
  std::vector<std::string> factors;  ///< Of a miss: what differs from the caches that are there.
};
struct CacheUseRequest {
  std::uint32_t rank = 0;
  std::vector<CacheLookup> lookups;
};

/// In the order in which an engine asks them: from the outermost, which saves most, inwards.
inline constexpr std::string_view kCacheNames[] = {"aot_compile",       "torch_compile_cache",
                                                   "compiled_artifact", "aot_autograd",
                                                   "fx_graph",          "triton"};

/// "env", "config", "code", "compiler" or "place"; "artifact" where the engine names no factor.
std::string FactorKind(const CacheLookup& lookup);

Result<CacheUseRequest> ReadCacheUse(json::Reader& in);

}  // namespace rouse::agent
