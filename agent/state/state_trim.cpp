// What is removed from a store when it grows too large.

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <map>
#include <vector>

#include "agent/state/kept_list.h"
#include "agent/state/state_store.h"
#include "agent/state/tree.h"
#include "common/log.h"

namespace rouse::agent {
namespace {

namespace fs = std::filesystem;
using memory::OwnedFd;

/// What an agent that is gone has left of a fetch.
constexpr std::chrono::hours kPartsKept{1};

struct Kept {
  fs::path path;
  fs::file_time_type used;
  std::string fingerprint;
  std::map<std::string, std::uint64_t> files;  ///< Bytes by digest.
};

// All of them, or an error: what a bundle needs that was not read would be taken away. Removes what
// is no bundle.
Result<std::vector<Kept>> ReadBundles(const fs::path& folder) {
  std::vector<Kept> bundles;
  const auto read = [&](const fs::directory_entry& entry) -> Status {
    std::error_code gone;
    if (!IsFileOfAtMost(entry, kMaxBundleText)) {
      fs::remove(entry.path(), gone);
      return Status();
    }
    const auto text = ReadWholeFile(entry.path().string(), kMaxBundleText);
    if (text.status().code() == StatusCode::kNotFound) return Status();  // Removed meanwhile.
    ROUSE_RETURN_IF_ERROR(text.status());
    const auto document = json::Parse(*text, "bundle", kMaxBundleText);
    const auto bundle = document.ok() ? BundleFromJson(*document) : document.status();
    if (!bundle.ok()) {
      fs::remove(entry.path(), gone);
      return Status();
    }
    Kept kept{.path = entry.path(),
              .used = entry.last_write_time(gone),
              .fingerprint = bundle->fingerprint,
              .files = {}};
    for (const BundleEntry& file : bundle->entries) {
      if (!file.is_link()) kept.files[file.sha256] = file.bytes;
    }
    bundles.push_back(std::move(kept));
    return Status();
  };
  ROUSE_RETURN_IF_ERROR(VisitFolder(folder.string(), read));
  return bundles;
}

std::map<std::string, std::uint64_t> FilesOf(const std::vector<Kept>& bundles) {
  std::map<std::string, std::uint64_t> files;
  for (const Kept& bundle : bundles) files.insert(bundle.files.begin(), bundle.files.end());
  return files;
}

std::uint64_t Sum(const std::map<std::string, std::uint64_t>& files) {
  std::uint64_t total = 0;
  for (const auto& [digest, bytes] : files) total += bytes;
  return total;
}

Status RemoveOldParts(const fs::path& folder) {
  const auto before = fs::file_time_type::clock::now() - kPartsKept;
  return VisitFolder(folder.string(), [&](const fs::directory_entry& part) {
    std::error_code gone;
    const auto written = part.last_write_time(gone);
    if (!gone && written < before) fs::remove(part.path(), gone);
    return Status();
  });
}

Status RemoveOthers(const fs::path& folder, const std::map<std::string, std::uint64_t>& needed) {
  const auto remove_unless_needed = [&](const fs::directory_entry& file) {
    std::error_code gone;
    if (!needed.contains(file.path().filename().string())) fs::remove(file.path(), gone);
    return Status();
  };
  return VisitFolder(folder.string(), [&](const fs::directory_entry& shelf) {
    std::error_code unknown;
    if (!shelf.is_directory(unknown)) return Status();
    return VisitFolder(shelf.path().string(), remove_unless_needed);
  });
}

Status TrimLocked(const fs::path& folder, std::uint64_t max_bytes, std::set<std::string> keep) {
  ROUSE_RETURN_IF_ERROR(RemoveOldParts(folder / "parts"));
  ROUSE_ASSIGN_OR_RETURN(const auto by_anybody, KeptByAnybody(folder.string()));
  for (const auto& kept : by_anybody) keep.insert(kept.first);
  ROUSE_ASSIGN_OR_RETURN(std::vector<Kept> bundles, ReadBundles(folder / "bundles"));
  std::sort(bundles.begin(), bundles.end(),
            [](const Kept& a, const Kept& b) { return a.used < b.used; });
  for (auto oldest = bundles.begin();
       oldest != bundles.end() && Sum(FilesOf(bundles)) > max_bytes;) {
    if (keep.contains(oldest->fingerprint)) {
      ++oldest;
      continue;
    }
    log::Info("bundle removed from the store, to make room",
              {{"path", oldest->path.string()}, {"maxBytes", max_bytes}});
    std::error_code gone;
    fs::remove(oldest->path, gone);
    oldest = bundles.erase(oldest);
  }
  return RemoveOthers(folder / "blobs", FilesOf(bundles));
}

}  // namespace

void StateStore::Trim(std::set<std::string> keep) const {
  const std::string path = options_.folder + "/lock";
  const OwnedFd lock(::open(path.c_str(), O_RDWR | O_NOFOLLOW | O_CLOEXEC));
  if (lock.valid() && ::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) return;  // Somebody holds it.
  const Status done = lock.valid()
                          ? TrimLocked(options_.folder, options_.max_bytes, std::move(keep))
                          : FromErrno(errno, "open " + path);
  if (!done.ok()) {
    log::Warning("the store is not trimmed; it will be tried again",
                 {{"path", options_.folder}, {"error", done.ToString()}});
  }
}

}  // namespace rouse::agent
