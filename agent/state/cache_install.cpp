#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <set>

#include "agent/state/cache_tree.h"
#include "common/plain_path.h"
#include "common/sha256.h"

namespace rouse::agent {
namespace {

namespace fs = std::filesystem;
using memory::OwnedFd;

/// A folder beside the caches in which a bundle is put together; gone with this object.
class Staging {
 public:
  static Result<std::unique_ptr<Staging>> Make(const std::string& state_folder, CacheClass of) {
    auto staging = std::unique_ptr<Staging>(
        new Staging(state_folder + "/.rouse-install-" + std::string(ToString(of))));
    staging->Clear();  // An agent that was killed has left it.
    if (::mkdir(staging->path_.c_str(), 0700) != 0) {
      return FromErrno(errno, "make " + staging->path_);
    }
    return staging;
  }
  ~Staging() { Clear(); }
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;
  const std::string& path() const { return path_; }

 private:
  explicit Staging(std::string path) : path_(std::move(path)) {}
  void Clear() const {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }

  const std::string path_;
};

Status SetTime(const std::string& path, const BundleEntry& entry) {
  const timespec time{static_cast<time_t>(entry.modified_s), static_cast<long>(entry.modified_ns)};
  const timespec times[2] = {time, time};
  if (::utimensat(AT_FDCWD, path.c_str(), times, AT_SYMLINK_NOFOLLOW) != 0) {
    return FromErrno(errno, "set the time of " + path);
  }
  return Status();
}

Status PutFile(const StateStore& store, const BundleEntry& entry, const std::string& path) {
  ROUSE_ASSIGN_OR_RETURN(const OwnedFd from, store.OpenFile(entry.sha256));
  const OwnedFd to(::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!to.valid()) return FromErrno(errno, "create " + path);
  ROUSE_RETURN_IF_ERROR(CopyBytes(from.get(), to.get(), path).status());
  if (::lseek(to.get(), 0, SEEK_SET) != 0) return FromErrno(errno, "seek in " + path);
  ROUSE_ASSIGN_OR_RETURN(const std::string digest, Sha256OfFile(to.get(), path));
  if (digest != entry.sha256) {
    store.Discard(entry.sha256);
    return DataLoss("the store's file for " + entry.path + " has other bytes than its name says");
  }
  if (::fchmod(to.get(), entry.mode) != 0) return FromErrno(errno, "set the mode of " + path);
  return SetTime(path, entry);
}

Status PutLink(const BundleEntry& entry, const std::string& path) {
  if (::symlink(entry.target.c_str(), path.c_str()) != 0) return FromErrno(errno, "link " + path);
  return SetTime(path, entry);
}

/// The folder that a root lies in, made where missing, and no link on the way.
Result<OwnedFd> OpenParentOf(const std::string& state_folder, std::string_view root) {
  OwnedFd at(::open(state_folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!at.valid()) return FromErrno(errno, "open " + state_folder);
  const auto parts = PathParts(root);
  for (std::size_t i = 0; i + 1 < parts.size(); ++i) {
    if (::mkdirat(at.get(), parts[i].c_str(), 0755) != 0 && errno != EEXIST) {
      return FromErrno(errno, "make " + parts[i] + " in " + state_folder);
    }
    OwnedFd next(
        ::openat(at.get(), parts[i].c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (!next.valid()) return FromErrno(errno, "open " + parts[i] + " in " + state_folder);
    at = std::move(next);
  }
  return at;
}

/// Whether the root came to its place; false: there was one.
Result<bool> MoveRoot(const std::string& staged, const std::string& state_folder,
                      std::string_view root) {
  ROUSE_ASSIGN_OR_RETURN(const OwnedFd parent, OpenParentOf(state_folder, root));
  const std::string name = PathParts(root).back();
  struct stat info {};
  if (::fstatat(parent.get(), name.c_str(), &info, AT_SYMLINK_NOFOLLOW) == 0) {
    // What the engine's image or an earlier start has made empty is no cache.
    if (!S_ISDIR(info.st_mode) || ::unlinkat(parent.get(), name.c_str(), AT_REMOVEDIR) != 0) {
      return false;
    }
  }
  if (::renameat(AT_FDCWD, staged.c_str(), parent.get(), name.c_str()) != 0) {
    return FromErrno(errno, "put " + std::string(root) + " in place in " + state_folder);
  }
  return true;
}

}  // namespace

Result<InstallOutcome> InstallCaches(const StateStore& store, const Bundle& bundle,
                                     const std::string& state_folder) {
  // Once more, whoever it comes from: all that follows relies on it.
  ROUSE_RETURN_IF_ERROR(BundleFromJson(ToJson(bundle)).status());
  ROUSE_ASSIGN_OR_RETURN(const auto staging, Staging::Make(state_folder, bundle.of));
  InstallOutcome outcome;
  std::set<std::string_view> roots;
  std::set<fs::path> made;
  for (const BundleEntry& entry : bundle.entries) {
    const fs::path path = fs::path(staging->path()) / entry.path;
    if (made.insert(path.parent_path()).second) {
      std::error_code error;
      fs::create_directories(path.parent_path(), error);
      if (error) return FromErrno(error.value(), "make " + path.parent_path().string());
    }
    ROUSE_RETURN_IF_ERROR(entry.is_link() ? PutLink(entry, path.string())
                                          : PutFile(store, entry, path.string()));
    roots.insert(RootOf(bundle.of, entry.path));
    ++outcome.files;
    outcome.bytes += entry.bytes;
  }
  for (const std::string_view root : roots) {
    const std::string staged = staging->path() + "/" + std::string(root);
    ROUSE_ASSIGN_OR_RETURN(const bool moved, MoveRoot(staged, state_folder, root));
    if (!moved) outcome.kept.emplace_back(root);
  }
  return outcome;
}

}  // namespace rouse::agent
