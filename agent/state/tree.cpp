#include "agent/state/tree.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <filesystem>
#include <vector>

#include "agent/memory/owned_fd.h"
#include "common/plain_path.h"
#include "common/write_all.h"

namespace rouse::agent {
namespace {

namespace fs = std::filesystem;
using memory::OwnedFd;

constexpr std::size_t kMaxTreeFiles = 4096;
constexpr std::uint64_t kMaxTreeBytes = 256u << 20;

/// The folder that `path` lies in, made where missing.
Result<OwnedFd> OpenParent(const std::string& folder, const std::vector<std::string>& parts) {
  OwnedFd at(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!at.valid()) return FromErrno(errno, "open folder " + folder);
  for (std::size_t i = 0; i + 1 < parts.size(); ++i) {
    const char* const name = parts[i].c_str();
    if (::mkdirat(at.get(), name, 0755) == 0) {
      ::fchmodat(at.get(), name, 0755, 0);  // Whatever the umask is: the engine is another user.
    } else if (errno != EEXIST) {
      return FromErrno(errno, "make folder " + parts[i] + " in " + folder);
    }
    OwnedFd next(::openat(at.get(), name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (!next.valid()) {
      if (errno == ELOOP || errno == ENOTDIR) {
        return InvalidArgument("\"" + parts[i] + "\" in " + folder + " is no folder");
      }
      return FromErrno(errno, "open folder " + parts[i] + " in " + folder);
    }
    at = std::move(next);
  }
  return at;
}

std::string TemporaryName() {
  static std::atomic<unsigned> counter{0};
  return ".rouse-" + std::to_string(::getpid()) + "-" + std::to_string(counter++) + ".part";
}

// A container's processes have the same numbers after every start, so one that was killed may have
// left a file of this name behind.
OwnedFd CreateAnew(int folder, const char* name) {
  ::unlinkat(folder, name, 0);
  return OwnedFd(
      ::openat(folder, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
}

}  // namespace

Status WriteFileBelow(const std::string& folder, const FileToWrite& file,
                      std::string_view content) {
  const std::string what = folder + "/" + file.path;
  if (!IsPlainPath(file.path)) {
    return InvalidArgument("\"" + file.path + "\" is not a plain relative path");
  }
  const auto parts = PathParts(file.path);
  ROUSE_ASSIGN_OR_RETURN(const OwnedFd parent, OpenParent(folder, parts));
  const std::string temporary = TemporaryName();
  OwnedFd fd = CreateAnew(parent.get(), temporary.c_str());
  if (!fd.valid()) return FromErrno(errno, "create " + what);

  Status status = WriteAll(fd.get(), content, what);
  if (status.ok() && ::fchmod(fd.get(), (file.mode & 0755u) | 0444u) != 0) {
    status = FromErrno(errno, "set the mode of " + what);
  }
  if (status.ok() && file.modified) {
    const timespec times[2] = {*file.modified, *file.modified};
    if (::futimens(fd.get(), times) != 0) status = FromErrno(errno, "set the time of " + what);
  }
  if (status.ok() &&
      ::renameat(parent.get(), temporary.c_str(), parent.get(), parts.back().c_str()) != 0) {
    status = FromErrno(errno, "rename to " + what);
  }
  if (!status.ok()) ::unlinkat(parent.get(), temporary.c_str(), 0);
  return status;
}

Result<std::string> ReadWholeFile(const std::string& path, std::uint64_t max_bytes) {
  // O_NONBLOCK: opening a pipe must not wait for a writer. It has no effect on a regular file.
  const OwnedFd fd(::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  if (!fd.valid()) return FromErrno(errno, "open " + path);
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0) return FromErrno(errno, "look at " + path);
  if (!S_ISREG(info.st_mode)) return InvalidArgument(path + " is no regular file");
  if (static_cast<std::uint64_t>(info.st_size) > max_bytes) {
    return Status(StatusCode::kResourceExhausted, path + " has " + std::to_string(info.st_size) +
                                                      " bytes, at most " +
                                                      std::to_string(max_bytes) + " are allowed");
  }
  std::string content(static_cast<std::size_t>(info.st_size), '\0');
  std::size_t done = 0;
  while (done < content.size()) {
    const ssize_t got = ::read(fd.get(), content.data() + done, content.size() - done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return FromErrno(errno, "read " + path);
    if (got == 0) break;
    done += static_cast<std::size_t>(got);
  }
  content.resize(done);
  return content;
}

Status VisitFolder(const std::string& folder,
                   const std::function<Status(const fs::directory_entry&)>& visit) {
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    ROUSE_RETURN_IF_ERROR(visit(*it));
  }
  if (error) return FromErrno(error.value(), "list " + folder);
  return Status();
}

bool IsFileOfAtMost(const fs::directory_entry& entry, std::uint64_t max_bytes) {
  std::error_code unknown;
  const bool file = fs::is_regular_file(entry.symlink_status(unknown));
  return file && entry.file_size(unknown) <= max_bytes && !unknown;
}

Status CopyTree(const std::string& source, const std::string& target) {
  std::error_code error;
  fs::recursive_directory_iterator walk(source, error);
  if (error) return FromErrno(error.value(), "list " + source);
  std::size_t files = 0;
  std::uint64_t bytes = 0;
  for (const fs::recursive_directory_iterator end; walk != end; walk.increment(error)) {
    if (error) return FromErrno(error.value(), "list " + source);
    const std::string path = walk->path().string();
    struct stat info {};
    if (::lstat(path.c_str(), &info) != 0) return FromErrno(errno, "look at " + path);
    if (!S_ISREG(info.st_mode)) continue;
    if (++files > kMaxTreeFiles) {
      return Status(StatusCode::kResourceExhausted, source + " has more than 4096 files");
    }
    ROUSE_ASSIGN_OR_RETURN(const std::string content, ReadWholeFile(path, kMaxTreeBytes - bytes));
    bytes += content.size();
    const FileToWrite file{.path = walk->path().lexically_relative(source).string(),
                           .mode = info.st_mode & 0777u,
                           .modified = info.st_mtim};
    ROUSE_RETURN_IF_ERROR(WriteFileBelow(target, file, content));
  }
  if (error) return FromErrno(error.value(), "list " + source);
  if (files == 0) return NotFound("no file in " + source);
  return Status();
}

}  // namespace rouse::agent
