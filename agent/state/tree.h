// Writing files below a folder so that nobody ever sees half of one, and nothing outside it
// changes.
//
// A path is walked part by part without following symbolic links; a file is written under a
// temporary name beside its place, and renamed. Threads: any, on different files.

#pragma once

#include <cstdint>
#include <ctime>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "common/result.h"

namespace rouse::agent {

struct FileToWrite {
  std::string path;  ///< Relative to the folder, plain.
  unsigned mode = 0644;
  std::optional<timespec> modified;  ///< Kept as it was at the source when given.
};

/// Writes or replaces one file below `folder`, readable for everybody; missing folders are made.
/// InvalidArgument for a path that is not plain or leads through a symbolic link; ResourceExhausted
/// when the disk is full. Nothing is left behind when it fails.
Status WriteFileBelow(const std::string& folder, const FileToWrite& file, std::string_view content);

/// Copies every regular file below `source` to `target`, modes and times kept. For the plugin: a
/// small tree (at most 4096 files, 256 MiB) that we ship ourselves.
Status CopyTree(const std::string& source, const std::string& target);

/// Reads a regular file of at most `max_bytes`.
Result<std::string> ReadWholeFile(const std::string& path, std::uint64_t max_bytes);

/// Calls `visit` with all that is in a folder, which may remove it. Ends at the first error, of the
/// listing or of a visit.
Status VisitFolder(const std::string& folder,
                   const std::function<Status(const std::filesystem::directory_entry&)>& visit);

/// Whether it is one that ReadWholeFile() reads: then an error from there is the machine's (no
/// descriptor is left, the disk fails), not the file's.
bool IsFileOfAtMost(const std::filesystem::directory_entry& entry, std::uint64_t max_bytes);

}  // namespace rouse::agent
