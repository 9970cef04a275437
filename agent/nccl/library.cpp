#include "agent/nccl/library.h"

#include <dlfcn.h>

#include <type_traits>

#include "common/symbol_finder.h"

namespace rouse::nccl {
namespace {

constexpr int kOldest = 21400;  // non-blocking communicators
constexpr int kNextMajor = 30000;

static_assert(sizeof(Config) == 24 && std::is_standard_layout_v<Config>);

StatusCode CodeOf(Code code) {
  switch (code) {
    case Code::kInvalidArgument:
    case Code::kInvalidUsage:
      return StatusCode::kInvalidArgument;
    case Code::kSystemError:
    case Code::kRemoteError:
      return StatusCode::kUnavailable;
    case Code::kTimeout:
      return StatusCode::kDeadlineExceeded;
    default:
      return StatusCode::kInternal;
  }
}

}  // namespace

std::string VersionText(int version) {
  return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
         std::to_string(version % 100);
}

Result<Library> Library::Open(const std::string& path) {
  void* const opened = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (opened == nullptr) return Unavailable(std::string("no NCCL: ") + ::dlerror());
  Library library;
  SymbolFinder find(opened);
  find(library.GetVersion, "ncclGetVersion");
  find(library.GetUniqueId, "ncclGetUniqueId");
  find(library.CommInitRankConfig, "ncclCommInitRankConfig");
  find(library.CommGetAsyncError, "ncclCommGetAsyncError");
  find(library.CommFinalize, "ncclCommFinalize");
  find(library.CommDestroy, "ncclCommDestroy");
  find(library.CommAbort, "ncclCommAbort");
  find(library.Broadcast, "ncclBroadcast");
  find(library.GetErrorString, "ncclGetErrorString");
  find(library.GetLastError, "ncclGetLastError");
  if (find.missing() != nullptr) {
    return Unavailable("NCCL does not fit: " + path + " has no " + find.missing());
  }
  ROUSE_RETURN_IF_ERROR(
      ToStatus(library, library.GetVersion(&library.version), nullptr, "ask for NCCL's version"));
  if (library.version < kOldest || library.version >= kNextMajor) {
    return Unavailable("NCCL does not fit: " + path + " is version " +
                       VersionText(library.version) + ", needed is 2.14 or a later 2");
  }
  return library;
}

Status ToStatus(const Library& library, Code code, Handle handle, std::string_view what) {
  if (code == Code::kSuccess) return {};
  const char* const text = library.GetErrorString(code);
  const char* const last = library.GetLastError(handle);
  std::string message = std::string(what) + ": NCCL: " + (text != nullptr ? text : "unknown error");
  if (last != nullptr && last[0] != '\0') message += std::string(": ") + last;
  return Status(CodeOf(code), std::move(message));
}

}  // namespace rouse::nccl
