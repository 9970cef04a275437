#include "agent/storage/checkpoint_files.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <pthread.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <optional>
#include <span>
#include <system_error>
#include <thread>

namespace rouse::storage {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kMaxIndexBytes = kMaxHeaderBytes;
constexpr std::size_t kHeaderThreads = 8;  // a header is a round trip or two on a network
constexpr std::size_t kMaxFiles = 100'000;

std::int64_t ChangedNs(const struct stat& info) {
  return std::int64_t{info.st_mtim.tv_sec} * 1'000'000'000 + info.st_mtim.tv_nsec;
}

struct OpenedFile {
  memory::OwnedFd fd;
  struct stat info = {};
};

Result<OpenedFile> OpenFile(const fs::path& path) {
  OpenedFile file;
  // Non-blocking: opening a pipe would wait for its other end.
  file.fd = memory::OwnedFd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!file.fd.valid()) return FromErrno(errno, "open " + path.string());
  if (::fstat(file.fd.get(), &file.info) != 0) return FromErrno(errno, "stat " + path.string());
  if (!S_ISREG(file.info.st_mode)) return InvalidArgument(path.string() + ": is no regular file");
  return file;
}

Result<std::string> ReadPart(int fd, std::uint64_t offset, std::uint64_t bytes,
                             const fs::path& path) {
  std::string text(bytes, '\0');
  for (std::uint64_t done = 0; done < bytes;) {
    const ssize_t count =
        ::pread(fd, text.data() + done, bytes - done, static_cast<off_t>(offset + done));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return FromErrno(errno, "read " + path.string());
    if (count == 0) return DataLoss(path.string() + ": became shorter while it was read");
    done += static_cast<std::uint64_t>(count);
  }
  return text;
}

// tmpfs takes O_DIRECT from Linux 6.6 on and copies all the same.
bool LivesInMemory(int fd) {
  struct statfs info = {};
  if (::fstatfs(fd, &info) != 0) return false;
  const auto type = static_cast<unsigned long>(info.f_type);
  return type == TMPFS_MAGIC || type == RAMFS_MAGIC || type == HUGETLBFS_MAGIC;
}

// The same file, past the page cache: a checkpoint is read once, and would push out of the cache
// what is read often. None where that cannot be.
memory::OwnedFd OpenDirect(const fs::path& path, const OpenedFile& file) {
  if (LivesInMemory(file.fd.get())) return {};
  memory::OwnedFd direct(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_DIRECT));
  struct stat info = {};
  if (!direct.valid() || ::fstat(direct.get(), &info) != 0 || info.st_dev != file.info.st_dev ||
      info.st_ino != file.info.st_ino) {
    return {};
  }
  return direct;
}

Result<std::vector<std::string>> ListFiles(const fs::path& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    names.push_back(it->path().filename().string());
    if (names.size() > kMaxFiles) {
      return InvalidArgument(folder.string() + ": holds more than " + std::to_string(kMaxFiles) +
                             " files; it is no checkpoint");
    }
  }
  if (error) return FromErrno(error.value(), "list " + folder.string());
  return names;
}

Result<std::optional<ShardIndex>> ReadIndex(const fs::path& folder,
                                            const std::vector<std::string>& files) {
  if (std::find(files.begin(), files.end(), kIndexFile) == files.end()) {
    return std::optional<ShardIndex>();
  }
  const fs::path path = folder / kIndexFile;
  ROUSE_ASSIGN_OR_RETURN(const OpenedFile file, OpenFile(path));
  const auto bytes = static_cast<std::uint64_t>(file.info.st_size);
  if (bytes > kMaxIndexBytes) {
    return InvalidArgument(path.string() + ": has " + std::to_string(bytes) + " bytes, more than " +
                           std::to_string(kMaxIndexBytes));
  }
  ROUSE_ASSIGN_OR_RETURN(const std::string text, ReadPart(file.fd.get(), 0, bytes, path));
  ROUSE_ASSIGN_OR_RETURN(ShardIndex index, DecodeIndex(text, path.string()));
  return std::optional<ShardIndex>(std::move(index));
}

}  // namespace

Result<CheckpointFiles::Opened> CheckpointFiles::OpenShard(const fs::path& folder,
                                                           const std::string& name) {
  const fs::path path = folder / name;
  ROUSE_ASSIGN_OR_RETURN(OpenedFile file, OpenFile(path));
  const auto bytes = static_cast<std::uint64_t>(file.info.st_size);
  ROUSE_ASSIGN_OR_RETURN(const std::string first,
                         ReadPart(file.fd.get(), 0, std::min(bytes, kHeaderLengthBytes), path));
  ROUSE_ASSIGN_OR_RETURN(const std::uint64_t length,
                         DecodeHeaderLength(std::as_bytes(std::span(first)), bytes, path.string()));
  ROUSE_ASSIGN_OR_RETURN(const std::string text,
                         ReadPart(file.fd.get(), kHeaderLengthBytes, length, path));
  ROUSE_ASSIGN_OR_RETURN(ShardHeader header, DecodeHeader(text, bytes, path.string()));
  memory::OwnedFd direct = OpenDirect(path, file);
  return Opened{.file = {.fd = std::move(file.fd),
                         .direct = std::move(direct),
                         .bytes = bytes,
                         .changed_ns = ChangedNs(file.info)},
                .shard = {.file = name, .file_bytes = bytes, .header = std::move(header)}};
}

Result<std::vector<CheckpointFiles::Opened>> CheckpointFiles::OpenShards(
    const fs::path& folder, const std::vector<std::string>& names, const std::stop_token& stop) {
  std::vector<std::optional<Result<Opened>>> opened(names.size());
  std::atomic<std::size_t> next{0};
  std::atomic<bool> failed{false};
  const auto work = [&] {
    ::pthread_setname_np(::pthread_self(), "storage-open");
    for (std::size_t i; !failed && !stop.stop_requested() && (i = next++) < names.size();) {
      opened[i] = OpenShard(folder, names[i]);
      if (!opened[i]->ok()) failed = true;
    }
  };
  {
    std::vector<std::jthread> pool;
    for (std::size_t i = 0; i < std::min(kHeaderThreads, names.size()); ++i) {
      pool.emplace_back(work);
    }
  }
  std::vector<Opened> out;
  for (auto& one : opened) {
    if (one && !one->ok()) return one->status();
  }
  if (stop.stop_requested()) {
    return Status(StatusCode::kCancelled, "opening the checkpoint in " + folder.string());
  }
  for (auto& one : opened) out.push_back(**std::move(one));
  return out;
}

Result<CheckpointFiles> CheckpointFiles::Open(const fs::path& folder, std::stop_token stop) {
  ROUSE_ASSIGN_OR_RETURN(const std::vector<std::string> present, ListFiles(folder));
  ROUSE_ASSIGN_OR_RETURN(const std::optional<ShardIndex> index, ReadIndex(folder, present));
  const auto names = ChooseShards(index, present);
  if (!names.ok()) return names.status().WithContext(folder.string());
  ROUSE_ASSIGN_OR_RETURN(std::vector<Opened> opened, OpenShards(folder, *names, stop));

  CheckpointFiles files;
  std::vector<Shard> shards;  // in the order of names, as MakeCheckpoint keeps them
  for (Opened& one : opened) {
    files.files_.push_back(std::move(one.file));
    shards.push_back(std::move(one.shard));
  }
  auto checkpoint = MakeCheckpoint(std::move(shards), index);
  if (!checkpoint.ok()) return checkpoint.status().WithContext(folder.string());
  files.checkpoint_ = *std::move(checkpoint);
  return files;
}

Status CheckpointFiles::CheckUnchanged() const {
  for (std::size_t i = 0; i < files_.size(); ++i) {
    struct stat info = {};
    const std::string& name = checkpoint_.shards[i].file;
    if (::fstat(files_[i].fd.get(), &info) != 0) return FromErrno(errno, "stat " + name);
    if (static_cast<std::uint64_t>(info.st_size) != files_[i].bytes ||
        ChangedNs(info) != files_[i].changed_ns) {
      return DataLoss(name + ": changed while it was read; start again when nobody writes to it");
    }
  }
  return {};
}

}  // namespace rouse::storage
