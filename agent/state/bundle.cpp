#include "agent/state/bundle.h"

#include <map>
#include <set>

#include "common/plain_path.h"
#include "common/protocol.h"
#include "common/sha256.h"

namespace rouse::agent {
namespace {

enum class Kind { kFile, kLink };
constexpr json::EnumName<Kind> kKinds[] = {{Kind::kFile, "File"}, {Kind::kLink, "Link"}};

constexpr std::int64_t kLastSecond = INT64_C(1) << 34;  // The year 2514.

std::string Joined(const std::vector<std::string>& parts) {
  std::string path;
  for (const std::string& part : parts) path += (path.empty() ? "" : "/") + part;
  return path;
}

/// Where a link leads, as a path like an entry's; empty when that is no place that it may lead to.
/// No folder on the way is a link, so that ".." is what it says.
std::string Resolved(const BundleEntry& link) {
  std::vector<std::string> at = PathParts(link.path);
  at.pop_back();
  bool leading = true;
  for (const std::string& part : PathParts(link.target)) {
    if (part == "..") {
      if (!leading || at.empty()) return "";
      at.pop_back();
      continue;
    }
    leading = false;
    at.push_back(part);
  }
  const std::string path = Joined(at);
  return IsPlainPath(path, kMaxFileName) ? path : "";
}

BundleEntry ReadEntry(json::Reader& in, CacheClass of) {
  const Kind kind = in.Enum<Kind>("kind", kKinds);
  BundleEntry entry{.path = in.String("path"),
                    .modified_s = in.Int("modifiedS", 0, kLastSecond),
                    .modified_ns = in.Int("modifiedNs", 0, 999'999'999)};
  if (kind == Kind::kFile) {
    entry.bytes = static_cast<std::uint64_t>(
        in.Int("bytes", 0, static_cast<std::int64_t>(kMaxBundleFileBytes)));
    entry.mode = static_cast<std::uint32_t>(in.Int("mode", 0, 0777));
    entry.sha256 = in.String("sha256");
    if (in.status().ok() && !IsSha256Hex(entry.sha256)) {
      in.Fail("sha256", "expected 64 lower-case hex digits");
    }
  } else {
    entry.target = in.String("target");
    if (in.status().ok() && (entry.target.empty() || entry.target.front() == '/')) {
      in.Fail("target", "\"" + entry.target.substr(0, 128) + "\" is not relative");
    }
  }
  if (!in.status().ok()) return entry;
  if (!IsPlainPath(entry.path, kMaxFileName)) {
    in.Fail("path", "\"" + entry.path.substr(0, 128) + "\" is not a plain relative path");
  } else if (RootOf(of, entry.path).empty()) {
    in.Fail("path", "\"" + entry.path.substr(0, 128) + "\" is in no cache folder of class " +
                        std::string(ToString(of)));
  }
  return entry;
}

/// The folders that the entries lie in.
std::set<std::string> FoldersOf(const std::vector<BundleEntry>& entries) {
  std::set<std::string> folders;
  for (const BundleEntry& entry : entries) {
    for (std::size_t slash = entry.path.rfind('/'); slash != std::string::npos;
         slash = slash == 0 ? std::string::npos : entry.path.rfind('/', slash - 1)) {
      if (!folders.insert(entry.path.substr(0, slash)).second) break;
    }
  }
  return folders;
}

/// What holds of the entries together.
Status CheckTogether(const Bundle& bundle) {
  std::map<std::string_view, const BundleEntry*> by_path;
  std::uint64_t total = 0;
  for (const BundleEntry& entry : bundle.entries) {
    if (!by_path.emplace(entry.path, &entry).second) {
      return InvalidArgument("entries: \"" + entry.path + "\" is there twice");
    }
    total += entry.bytes;
    if (total > kMaxBundleBytes) return InvalidArgument("entries: add up to more than 32 GiB");
  }
  const std::set<std::string> folders = FoldersOf(bundle.entries);
  for (const BundleEntry& entry : bundle.entries) {
    if (folders.contains(entry.path)) {
      return InvalidArgument("entries: \"" + entry.path + "\" is a folder of another entry");
    }
    if (!entry.is_link()) continue;
    const std::string to = Resolved(entry);
    const auto file = by_path.find(to);
    const bool found = file != by_path.end() ? !file->second->is_link() : folders.contains(to);
    // A link to a folder that it lies in has whoever follows links go round in circles.
    const bool circle = entry.path.starts_with(to + "/");
    if (to.empty() || !found || circle || RootOf(bundle.of, to) != RootOf(bundle.of, entry.path)) {
      return InvalidArgument("entries: the link \"" + entry.path + "\" leads to \"" +
                             entry.target.substr(0, 128) +
                             "\", which is no file or folder of the same cache in this bundle");
    }
  }
  return Status();
}

}  // namespace

std::uint64_t Bundle::bytes() const {
  std::uint64_t total = 0;
  for (const BundleEntry& entry : entries) total += entry.bytes;
  return total;
}

json::Json ToJson(const Bundle& bundle) {
  json::Json entries = json::Json::array();
  for (const BundleEntry& entry : bundle.entries) {
    json::Json out = {{"kind", entry.is_link() ? "Link" : "File"},
                      {"path", entry.path},
                      {"modifiedS", entry.modified_s},
                      {"modifiedNs", entry.modified_ns}};
    if (entry.is_link()) {
      out["target"] = entry.target;
    } else {
      out["bytes"] = entry.bytes;
      out["mode"] = entry.mode;
      out["sha256"] = entry.sha256;
    }
    entries.push_back(std::move(out));
  }
  return {{"protocol", kBundleProtocol},
          {"version", kBundleVersion},
          {"class", ToString(bundle.of)},
          {"fingerprint", bundle.fingerprint},
          {"entries", std::move(entries)}};
}

Result<Bundle> BundleFromJson(const json::Json& value) {
  json::Reader in(value, "");
  ROUSE_RETURN_IF_ERROR(CheckProtocol(in, kBundleProtocol, kBundleVersion));
  Bundle bundle{.of = in.Enum<CacheClass>("class", kCacheClasses),
                .fingerprint = in.String("fingerprint")};
  if (in.status().ok() && !IsSha256Hex(bundle.fingerprint)) {
    in.Fail("fingerprint", "expected 64 lower-case hex digits");
  }
  bundle.entries = in.Objects("entries", kMaxBundleEntries,
                              [&](json::Reader& entry) { return ReadEntry(entry, bundle.of); });
  ROUSE_RETURN_IF_ERROR(in.status());
  ROUSE_RETURN_IF_ERROR(CheckTogether(bundle));
  return bundle;
}

}  // namespace rouse::agent
