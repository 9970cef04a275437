#include "agent/engine/cache_use.h"

#include <algorithm>

#include "agent/engine/protocol.h"
#include "common/protocol.h"

namespace rouse::agent {
namespace {

constexpr std::int64_t kMaxCount = 1'000'000'000;
constexpr std::string_view kFactorKinds[] = {"env", "config", "code", "compiler", "place"};

CacheLookup ReadLookup(json::Reader& in) {
  in.Only({"cache", "hits", "misses", "where", "reason", "factors"});
  CacheLookup lookup{.cache = in.String("cache"),
                     .hits = static_cast<std::uint64_t>(in.Int("hits", 0, kMaxCount)),
                     .misses = static_cast<std::uint64_t>(in.Int("misses", 0, kMaxCount)),
                     .where = in.String("where"),
                     .reason = in.String("reason"),
                     .factors = in.Strings("factors")};
  if (!in.status().ok()) return lookup;
  if (std::find(std::begin(kCacheNames), std::end(kCacheNames), lookup.cache) ==
      std::end(kCacheNames)) {
    in.Fail("cache", "\"" + lookup.cache.substr(0, 64) + "\" is no cache that is known here");
  }
  if (lookup.factors.size() > kMaxCacheFactors) in.Fail("factors", "are more than 32");
  for (const std::string* text : {&lookup.where, &lookup.reason}) {
    if (text->size() > kMaxCacheText) in.Fail("where", "and reason have at most 2048 bytes");
  }
  for (const std::string& factor : lookup.factors) {
    if (factor.empty() || factor.size() > 256) in.Fail("factors", "have 1 to 256 bytes each");
  }
  return lookup;
}

}  // namespace

std::string FactorKind(const CacheLookup& lookup) {
  if (lookup.factors.empty()) return "artifact";
  const std::string& first = lookup.factors.front();
  const std::string kind = first.substr(0, first.find('.'));
  const bool known =
      std::find(std::begin(kFactorKinds), std::end(kFactorKinds), kind) != std::end(kFactorKinds);
  return known ? kind : "artifact";
}

Result<CacheUseRequest> ReadCacheUse(json::Reader& in) {
  ROUSE_RETURN_IF_ERROR(CheckProtocol(in, kEngineProtocol, kEngineVersion));
  in.Only({"type", "protocol", "version", "rank", "lookups"});
  CacheUseRequest use{.rank = static_cast<std::uint32_t>(in.Int("rank", 0, kMaxWorldSize - 1)),
                      .lookups = in.Objects("lookups", kMaxCacheLookups, ReadLookup)};
  ROUSE_RETURN_IF_ERROR(in.status());
  return use;
}

}  // namespace rouse::agent
