// The files of a checkpoint: found, opened, their headers read and decoded.
//
//   ROUSE_ASSIGN_OR_RETURN(auto files, CheckpointFiles::Open(folder, stop));
//   ROUSE_ASSIGN_OR_RETURN(ReadPlan plan, PlanReads(files.checkpoint()));
//   auto arena = Arena::Create({.bytes = plan.arena_bytes, ...});
//   HostSink sink(**arena);
//   ROUSE_ASSIGN_OR_RETURN(auto report, ReadCheckpoint(files, plan, sink, {}, stop, {}));
//
// Lifetime: descriptors are closed on destruction. Threads: const members from any.

#pragma once

#include <cstdint>
#include <filesystem>
#include <stop_token>
#include <string>
#include <vector>

#include "agent/memory/owned_fd.h"
#include "agent/storage/checkpoint.h"
#include "common/result.h"

namespace rouse::storage {

class CheckpointFiles {
 public:
  /// Opens the checkpoint in `folder` and reads all headers, several at once.
  ///
  /// NotFound (no such folder, no safetensors file, or one of the index is missing),
  /// InvalidArgument (something in it is malformed), Cancelled, or what the file system answers.
  static Result<CheckpointFiles> Open(const std::filesystem::path& folder, std::stop_token stop);

  const Checkpoint& checkpoint() const { return checkpoint_; }

  /// Of shard `index` of the checkpoint, for reads at any offset.
  int fd(std::size_t index) const { return files_[index].fd.get(); }
  /// For reads past the page cache; -1 where the file system has none (it lives in memory, or
  /// refuses).
  int direct_fd(std::size_t index) const { return files_[index].direct.get(); }

  /// DataLoss when a file is not any more what it was when it was opened.
  Status CheckUnchanged() const;

 private:
  struct File {
    memory::OwnedFd fd;
    memory::OwnedFd direct;
    std::uint64_t bytes = 0;
    std::int64_t changed_ns = 0;  // modification time since the epoch
  };
  struct Opened {
    File file;
    Shard shard;
  };

  static Result<Opened> OpenShard(const std::filesystem::path& folder, const std::string& name);
  static Result<std::vector<Opened>> OpenShards(const std::filesystem::path& folder,
                                                const std::vector<std::string>& names,
                                                const std::stop_token& stop);

  Checkpoint checkpoint_;
  std::vector<File> files_;  // as the checkpoint's shards
};

}  // namespace rouse::storage
