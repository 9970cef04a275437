// libnccl, opened at run time: the functions that Rouse calls, declared here. Private to
// agent/nccl.
//
// NCCL's own header comes in a wheel of 200 MB only, so what is needed of it is declared here: ten
// functions, and structures that NCCL extends at the end alone. The configuration is that of 2.14,
// which says so in `version`, and later libraries fill in what it lacks. Types and values were
// compared by the compiler with nccl.h of 2.28.9. A library that is older than 2.14, or of another
// major version, is refused.

#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "common/result.h"

namespace rouse::nccl {

/// ncclComm_t points to it.
struct Comm;
using Handle = Comm*;

/// ncclUniqueId; travels by value.
struct UniqueId {
  char bytes[128];
};

/// ncclConfig_t of 2.14.
struct Config {
  std::size_t size = sizeof(Config);
  unsigned magic = 0xcafebeef;
  unsigned version = 21400;
  int blocking = 0;  ///< Every call returns at once; ncclCommGetAsyncError tells the outcome.
};

/// ncclResult_t.
enum class Code : int {
  kSuccess = 0,
  kUnhandledCudaError = 1,
  kSystemError = 2,
  kInternalError = 3,
  kInvalidArgument = 4,
  kInvalidUsage = 5,
  kRemoteError = 6,
  kInProgress = 7,
  kTimeout = 8,
};

inline constexpr int kUint8 = 1;  ///< ncclDataType_t

struct Library {
  Code (*GetVersion)(int*) = nullptr;
  Code (*GetUniqueId)(UniqueId*) = nullptr;
  Code (*CommInitRankConfig)(Handle*, int ranks, UniqueId, int rank, Config*) = nullptr;
  Code (*CommGetAsyncError)(Handle, Code*) = nullptr;
  Code (*CommFinalize)(Handle) = nullptr;
  Code (*CommDestroy)(Handle) = nullptr;
  Code (*CommAbort)(Handle) = nullptr;
  Code (*Broadcast)(const void* send, void* receive, std::size_t count, int type, int root, Handle,
                    void* stream) = nullptr;
  const char* (*GetErrorString)(Code) = nullptr;
  const char* (*GetLastError)(Handle) = nullptr;

  int version = 0;  ///< 22809 is 2.28.9.

  /// Unavailable, with the reason, when there is none at `path` (a name is looked for as the
  /// dynamic linker does) or it does not fit. It stays open for good.
  static Result<Library> Open(const std::string& path);
};

/// "2.28.9"
std::string VersionText(int version);

/// Ok, or what NCCL says of `code`; `handle` may be null.
Status ToStatus(const Library& library, Code code, Handle handle, std::string_view what);

}  // namespace rouse::nccl
