// A bundle: the list of the files that make up one class of an engine's caches, by their digests.
//
// A bundle comes from another machine and says where files are to be put, so decoding refuses
// whatever could reach outside the folders of its class. Pure.

#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "agent/state/cache_class.h"
#include "common/json.h"
#include "common/result.h"

namespace rouse::agent {

inline constexpr std::string_view kBundleProtocol = "rouse-bundle";
inline constexpr int kBundleVersion = 1;

inline constexpr std::size_t kMaxBundleEntries = 65'536;
inline constexpr std::uint64_t kMaxBundleFileBytes = UINT64_C(4) << 30;
inline constexpr std::uint64_t kMaxBundleBytes = UINT64_C(32) << 30;
inline constexpr std::size_t kMaxBundleText = 32u << 20;
inline constexpr std::size_t kMaxFileName = 255;  ///< Of Linux's file systems.

/// A regular file, or a symbolic link (`target` is not empty).
struct BundleEntry {
  std::string path;           ///< Relative to the state folder, below a root of the class.
  std::uint64_t bytes = 0;    ///< Of a file.
  std::uint32_t mode = 0644;  ///< Of a file: at most 0777.
  std::int64_t modified_s = 0;
  std::int64_t modified_ns = 0;
  std::string sha256;  ///< Of a file.
  std::string target;  ///< Of a link: relative, to a file or folder of the same root.

  bool is_link() const { return !target.empty(); }
  bool operator==(const BundleEntry&) const = default;
};

struct Bundle {
  CacheClass of = CacheClass::kMatched;
  std::string fingerprint;  ///< 64 hex digits: what it may be reused by.
  std::vector<BundleEntry> entries;

  std::uint64_t bytes() const;  ///< Of all files.
  bool operator==(const Bundle&) const = default;
};

json::Json ToJson(const Bundle& bundle);
/// Strict. Refuses, and names: paths that are not plain or not below a root of the class, two
/// entries of one path or one inside of the other, links that lead out of their root, to another
/// link or to nothing, modes beyond 0777, any kind of entry but file and link, and what is over the
/// bounds above.
Result<Bundle> BundleFromJson(const json::Json& value);

}  // namespace rouse::agent
