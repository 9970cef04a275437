#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <map>
#include <optional>

#include "agent/state/cache_tree.h"
#include "common/log.h"
#include "common/plain_path.h"

namespace rouse::agent {
namespace {

namespace fs = std::filesystem;
using memory::OwnedFd;

/// The entry at a path, without its digest; nullopt for what does not travel or has just gone.
std::optional<BundleEntry> LookAt(const fs::path& path, const std::string& relative) {
  struct stat info {};
  if (::lstat(path.c_str(), &info) != 0 || !IsPlainPath(relative, kMaxFileName)) {
    return std::nullopt;
  }
  BundleEntry entry{.path = relative,
                    .modified_s = std::max<std::int64_t>(info.st_mtim.tv_sec, 0),
                    .modified_ns = info.st_mtim.tv_nsec};
  if (S_ISREG(info.st_mode)) {
    entry.bytes = static_cast<std::uint64_t>(info.st_size);
    entry.mode = info.st_mode & 0777u;
    return entry;
  }
  std::error_code error;
  if (S_ISLNK(info.st_mode)) entry.target = fs::read_symlink(path, error).string();
  if (error || entry.target.empty()) return std::nullopt;
  return entry;
}

/// Leaves out links that a bundle may not have, as the decoder judges them.
CacheSnapshot WithoutBadLinks(CacheSnapshot entries, CacheClass of) {
  const auto acceptable = [&](const CacheSnapshot& some) {
    Bundle bundle{.of = of, .fingerprint = std::string(64, '0'), .entries = some};
    for (BundleEntry& entry : bundle.entries) {
      if (!entry.is_link()) entry.sha256 = std::string(64, '0');
    }
    return BundleFromJson(ToJson(bundle)).status();
  };
  if (std::none_of(entries.begin(), entries.end(), [](const auto& e) { return e.is_link(); })) {
    return entries;
  }
  CacheSnapshot files;
  std::copy_if(entries.begin(), entries.end(), std::back_inserter(files),
               [](const BundleEntry& entry) { return !entry.is_link(); });
  CacheSnapshot kept = files;
  for (const BundleEntry& entry : entries) {
    if (!entry.is_link()) continue;
    CacheSnapshot with = files;
    with.push_back(entry);
    if (const Status status = acceptable(with); status.ok()) {
      kept.push_back(entry);
    } else {
      log::Debug("link in the engine's caches left out", {{"error", status.message()}});
    }
  }
  return kept;
}

Result<OwnedFd> OpenToRead(const std::string& path) {
  OwnedFd fd(::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  if (!fd.valid()) return FromErrno(errno, "open " + path);
  return fd;
}

bool SameFile(const BundleEntry& a, const BundleEntry& b) {
  return a.bytes == b.bytes && a.modified_s == b.modified_s && a.modified_ns == b.modified_ns;
}

}  // namespace

Result<CacheSnapshot> LookAtCaches(const std::string& state_folder, const CacheScope& scope) {
  CacheSnapshot entries;
  for (const std::string_view root : RootsOf(scope.of)) {
    if (!scope.startup_plan && root == kStartupPlanRoot) continue;
    const fs::path top = fs::path(state_folder) / root;
    std::error_code error;
    if (!fs::is_directory(fs::symlink_status(top, error))) continue;
    fs::recursive_directory_iterator walk(top, fs::directory_options::skip_permission_denied,
                                          error);
    for (const fs::recursive_directory_iterator end; !error && walk != end; walk.increment(error)) {
      if (StaysBehind(walk->path().filename().string())) {
        walk.disable_recursion_pending();
        continue;
      }
      auto entry =
          LookAt(walk->path(), walk->path().lexically_relative(state_folder).generic_string());
      if (!entry) continue;
      entries.push_back(*std::move(entry));
      if (entries.size() > kMaxBundleEntries) {
        return Status(StatusCode::kResourceExhausted,
                      "the engine's caches have more than 65536 files");
      }
    }
    // The engine removes folders of its own while we look.
    if (error && error != std::errc::no_such_file_or_directory) {
      return FromErrno(error.value(), "list " + top.string());
    }
  }
  std::sort(entries.begin(), entries.end(),
            [](const BundleEntry& a, const BundleEntry& b) { return a.path < b.path; });
  return WithoutBadLinks(std::move(entries), scope.of);
}

Result<Bundle> PublishCaches(const StateStore& store, const std::string& state_folder,
                             const CacheScope& scope, const std::string& fingerprint,
                             const CacheSnapshot& snapshot, const Bundle& before) {
  std::map<std::string_view, const BundleEntry*> known;
  for (const BundleEntry& entry : before.entries) known[entry.path] = &entry;
  ROUSE_ASSIGN_OR_RETURN(const StateStore::Hold hold, store.HoldAll());
  Bundle bundle{.of = scope.of, .fingerprint = fingerprint, .entries = snapshot};
  for (BundleEntry& entry : bundle.entries) {
    if (entry.is_link()) continue;
    const auto old = known.find(entry.path);
    if (old != known.end() && SameFile(*old->second, entry) &&
        store.Has(old->second->sha256, entry.bytes)) {
      entry.sha256 = old->second->sha256;
      continue;
    }
    const std::string path = state_folder + "/" + entry.path;
    ROUSE_ASSIGN_OR_RETURN(const OwnedFd fd, OpenToRead(path));
    ROUSE_ASSIGN_OR_RETURN(const StateStore::Imported copy, store.Import(fd.get(), path));
    entry.sha256 = copy.sha256;
    entry.bytes = copy.bytes;
  }
  ROUSE_ASSIGN_OR_RETURN(const CacheSnapshot after, LookAtCaches(state_folder, scope));
  if (after != snapshot) {
    return Unavailable("the engine has written to its caches meanwhile");
  }
  ROUSE_RETURN_IF_ERROR(BundleFromJson(ToJson(bundle)).status());
  ROUSE_RETURN_IF_ERROR(store.Put(bundle));
  return bundle;
}

}  // namespace rouse::agent
