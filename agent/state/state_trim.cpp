// What is removed from a store when it grows too large.

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <algorithm>
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

std::vector<Kept> ReadBundles(const fs::path& folder) {
  std::vector<Kept> bundles;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const auto text = ReadWholeFile(entry.path().string(), kMaxBundleText);
    const auto document = text.ok() ? json::Parse(*text, "bundle", kMaxBundleText) : text.status();
    const auto bundle = document.ok() ? BundleFromJson(*document) : document.status();
    if (!bundle.ok()) {
      fs::remove(entry.path(), error);
      continue;
    }
    Kept kept{.path = entry.path(),
              .used = fs::last_write_time(entry.path(), error),
              .fingerprint = bundle->fingerprint,
              .files = {}};
    for (const BundleEntry& file : bundle->entries) {
      if (!file.is_link()) kept.files[file.sha256] = file.bytes;
    }
    bundles.push_back(std::move(kept));
  }
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

void RemoveOldParts(const fs::path& folder) {
  std::error_code error;
  const auto before = fs::file_time_type::clock::now() - kPartsKept;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    std::error_code gone;
    const auto written = entry.last_write_time(gone);
    if (!gone && written < before) fs::remove(entry.path(), gone);
  }
}

}  // namespace

void StateStore::Trim(std::set<std::string> keep) const {
  const std::string path = options_.folder + "/lock";
  const OwnedFd lock(::open(path.c_str(), O_RDWR | O_NOFOLLOW | O_CLOEXEC));
  if (!lock.valid() || ::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) return;
  const fs::path folder = options_.folder;
  RemoveOldParts(folder / "parts");
  for (const auto& kept : KeptByAnybody(options_.folder)) keep.insert(kept.first);
  std::vector<Kept> bundles = ReadBundles(folder / "bundles");
  std::sort(bundles.begin(), bundles.end(),
            [](const Kept& a, const Kept& b) { return a.used < b.used; });
  std::error_code error;
  for (auto oldest = bundles.begin();
       oldest != bundles.end() && Sum(FilesOf(bundles)) > options_.max_bytes;) {
    if (keep.contains(oldest->fingerprint)) {
      ++oldest;
      continue;
    }
    log::Info("bundle removed from the store, to make room",
              {{"path", oldest->path.string()}, {"maxBytes", options_.max_bytes}});
    fs::remove(oldest->path, error);
    oldest = bundles.erase(oldest);
  }
  const auto needed = FilesOf(bundles);
  for (const auto& shelf : fs::directory_iterator(folder / "blobs", error)) {
    for (const auto& file : fs::directory_iterator(shelf.path(), error)) {
      std::error_code gone;
      if (!needed.contains(file.path().filename().string())) fs::remove(file.path(), gone);
    }
  }
}

}  // namespace rouse::agent
