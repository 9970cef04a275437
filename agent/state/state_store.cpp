#include "agent/state/state_store.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <filesystem>
#include <vector>

#include "agent/state/tree.h"
#include "common/log.h"
#include "common/sha256.h"
#include "common/write_all.h"

namespace rouse::agent {
namespace {

namespace fs = std::filesystem;
using memory::OwnedFd;

constexpr std::size_t kCopyBytes = 1u << 20;

std::string Short(const std::string& sha256) {
  return sha256.substr(0, 12);
}

Status MoveInPlace(const std::string& from, const std::string& to) {
  std::error_code error;
  fs::create_directories(fs::path(to).parent_path(), error);
  if (error) return FromErrno(error.value(), "make the folder of " + to);
  // Whoever reads the store may be another user of the node; nobody changes what is in it.
  if (::chmod(from.c_str(), 0444) != 0 || ::rename(from.c_str(), to.c_str()) != 0) {
    return FromErrno(errno, "put " + to + " in place");
  }
  return Status();
}

/// Removes a file when it goes out of scope, unless it was moved.
class Unfinished {
 public:
  explicit Unfinished(std::string path) : path_(std::move(path)) {}
  ~Unfinished() { ::unlink(path_.c_str()); }
  Unfinished(const Unfinished&) = delete;
  Unfinished& operator=(const Unfinished&) = delete;
  const std::string& path() const { return path_; }

 private:
  const std::string path_;
};

}  // namespace

std::string NameForNow(const std::string& folder) {
  static std::atomic<unsigned> counter{0};
  return folder + "/.rouse-" + std::to_string(::getpid()) + "-" + std::to_string(::gettid()) + "-" +
         std::to_string(counter++) + ".part";
}

Result<std::uint64_t> CopyBytes(int from, int to, const std::string& what) {
  std::vector<char> buffer(kCopyBytes);
  std::uint64_t total = 0;
  for (;;) {
    const ssize_t got = ::read(from, buffer.data(), buffer.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return FromErrno(errno, "read " + what);
    if (got == 0) return total;
    total += static_cast<std::uint64_t>(got);
    ROUSE_RETURN_IF_ERROR(WriteAll(to, {buffer.data(), static_cast<std::size_t>(got)}, what));
  }
}

Result<std::unique_ptr<StateStore>> StateStore::Open(StateStoreOptions options) {
  for (const char* part : {"", "/blobs", "/bundles", "/parts"}) {
    const std::string folder = options.folder + part;
    if (::mkdir(folder.c_str(), 0755) != 0 && errno != EEXIST) {
      return FromErrno(errno, "make the folder " + folder + " of the store for compile caches");
    }
  }
  auto store = std::unique_ptr<StateStore>(new StateStore(std::move(options)));
  ROUSE_RETURN_IF_ERROR(store->HoldAll().status());
  return store;
}

Result<StateStore::Hold> StateStore::HoldAll() const {
  const std::string path = options_.folder + "/lock";
  OwnedFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0666));
  if (!fd.valid()) return FromErrno(errno, "open " + path);
  int done = 0;
  do {
    done = ::flock(fd.get(), LOCK_SH);
  } while (done != 0 && errno == EINTR);
  if (done != 0) return FromErrno(errno, "lock " + path);
  return Hold(std::move(fd));
}

std::string StateStore::BlobPath(const std::string& sha256) const {
  return options_.folder + "/blobs/" + sha256.substr(0, 2) + "/" + sha256;
}

std::string StateStore::PartPath(const std::string& sha256) const {
  return options_.folder + "/parts/" + options_.owner + "-" + sha256;
}

std::string StateStore::BundlePath(CacheClass of, const std::string& fingerprint) const {
  return options_.folder + "/bundles/" + std::string(ToString(of)) + "-" + fingerprint + ".json";
}

Result<Bundle> StateStore::Find(CacheClass of, const std::string& fingerprint) const {
  if (!IsSha256Hex(fingerprint)) return InvalidArgument("a fingerprint has 64 hex digits");
  const std::string path = BundlePath(of, fingerprint);
  ROUSE_ASSIGN_OR_RETURN(const std::string text, ReadWholeFile(path, kMaxBundleText));
  const auto document = json::Parse(text, path, kMaxBundleText);
  auto bundle = document.ok() ? BundleFromJson(*document) : document.status();
  Status whole = bundle.status();
  if (bundle.ok() && (bundle->of != of || bundle->fingerprint != fingerprint)) {
    whole = DataLoss("it is another bundle");
  }
  for (std::size_t i = 0; whole.ok() && i < bundle->entries.size(); ++i) {
    const BundleEntry& entry = bundle->entries[i];
    if (!entry.is_link() && !Has(entry.sha256, entry.bytes)) {
      whole = DataLoss("its file " + entry.path + " is not there");
    }
  }
  if (!whole.ok()) {
    log::Warning("bundle removed from the store",
                 {{"path", path}, {"error", whole.WithContext("not usable").ToString()}});
    Remove(of, fingerprint);
    return NotFound("the bundle in the store was not usable: " + whole.message());
  }
  ::utimensat(AT_FDCWD, path.c_str(), nullptr, 0);  // It was used now.
  return bundle;
}

Status StateStore::Put(const Bundle& bundle) const {
  if (bundle.bytes() > options_.max_bytes) {
    return Status(StatusCode::kResourceExhausted,
                  "the bundle has " + std::to_string(bundle.bytes()) +
                      " bytes, the store may have " + std::to_string(options_.max_bytes) +
                      ": give it more");
  }
  const std::string text = json::Dump(ToJson(bundle));
  if (text.size() > kMaxBundleText) {
    return Status(StatusCode::kResourceExhausted,
                  "the list of the bundle's files has " + std::to_string(text.size()) +
                      " bytes, at most " + std::to_string(kMaxBundleText) + " can be read back");
  }
  return WriteFileBelow(
      options_.folder,
      {.path = "bundles/" + std::string(ToString(bundle.of)) + "-" + bundle.fingerprint + ".json",
       .modified = {}},
      text);
}

void StateStore::Remove(CacheClass of, const std::string& fingerprint) const {
  ::unlink(BundlePath(of, fingerprint).c_str());
}

bool StateStore::Has(const std::string& sha256, std::uint64_t bytes) const {
  struct stat info {};
  return ::lstat(BlobPath(sha256).c_str(), &info) == 0 && S_ISREG(info.st_mode) &&
         static_cast<std::uint64_t>(info.st_size) == bytes;
}

Result<OwnedFd> StateStore::OpenFile(const std::string& sha256) const {
  const std::string path = BlobPath(sha256);
  OwnedFd fd(::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  if (!fd.valid()) return FromErrno(errno, "open " + path);
  return fd;
}

Result<std::string> StateStore::Read(const std::string& sha256, std::uint64_t offset,
                                     std::uint64_t bytes) const {
  ROUSE_ASSIGN_OR_RETURN(const OwnedFd fd, OpenFile(sha256));
  std::string out(static_cast<std::size_t>(bytes), '\0');
  std::size_t done = 0;
  while (done < out.size()) {
    const ssize_t got =
        ::pread(fd.get(), out.data() + done, out.size() - done, static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return FromErrno(errno, "read file " + Short(sha256) + " of the store");
    if (got == 0) return InvalidArgument("file " + Short(sha256) + " is not as long as that");
    done += static_cast<std::size_t>(got);
  }
  return out;
}

Result<StateStore::Imported> StateStore::Import(int fd, const std::string& what) const {
  const Unfinished copy(NameForNow(options_.folder + "/parts"));
  OwnedFd to(::open(copy.path().c_str(), O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!to.valid()) return FromErrno(errno, "create " + copy.path());
  Imported imported;
  ROUSE_ASSIGN_OR_RETURN(imported.bytes, CopyBytes(fd, to.get(), what));
  // Of the copy: the file itself may be changing.
  if (::lseek(to.get(), 0, SEEK_SET) != 0) return FromErrno(errno, "seek in " + copy.path());
  ROUSE_ASSIGN_OR_RETURN(imported.sha256, Sha256OfFile(to.get(), what));
  if (!Has(imported.sha256, imported.bytes)) {
    ROUSE_RETURN_IF_ERROR(MoveInPlace(copy.path(), BlobPath(imported.sha256)));
  }
  return imported;
}

void StateStore::Discard(const std::string& sha256) const {
  ::unlink(BlobPath(sha256).c_str());
}

std::uint64_t StateStore::PartBytes(const std::string& sha256) const {
  struct stat info {};
  if (::lstat(PartPath(sha256).c_str(), &info) != 0 || !S_ISREG(info.st_mode)) return 0;
  return static_cast<std::uint64_t>(info.st_size);
}

Status StateStore::Append(const std::string& sha256, std::uint64_t offset,
                          std::string_view bytes) const {
  const std::string path = PartPath(sha256);
  const int anew = offset == 0 ? O_TRUNC : 0;
  const OwnedFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_NOFOLLOW | O_CLOEXEC | anew, 0600));
  if (!fd.valid()) return FromErrno(errno, "open " + path);
  if (::lseek(fd.get(), 0, SEEK_END) != static_cast<off_t>(offset)) {
    return Internal("file " + Short(sha256) + " is continued at the wrong place");
  }
  return WriteAll(fd.get(), bytes, path);
}

Status StateStore::Finish(const std::string& sha256, std::uint64_t bytes) const {
  const Unfinished part(PartPath(sha256));
  // An empty file has no bytes to be fetched.
  const OwnedFd fd(::open(part.path().c_str(), O_RDONLY | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!fd.valid()) return FromErrno(errno, "open " + part.path());
  ROUSE_ASSIGN_OR_RETURN(const std::string digest, Sha256OfFile(fd.get(), part.path()));
  const std::uint64_t arrived = PartBytes(sha256);
  if (arrived != bytes || digest != sha256) {
    return DataLoss("a file arrived with " + std::to_string(arrived) + " bytes and digest " +
                    Short(digest) + ", announced were " + std::to_string(bytes) + " and " +
                    Short(sha256) + ": take another peer");
  }
  return MoveInPlace(part.path(), BlobPath(sha256));
}

}  // namespace rouse::agent
