#include "agent/nvml/library.h"

#include <dlfcn.h>

#include "common/symbol_finder.h"

namespace rouse::nvml {
namespace {

StatusCode CodeOf(Code code) {
  switch (code) {
    case Code::kInvalidArgument:
      return StatusCode::kInvalidArgument;
    case Code::kNotFound:
      return StatusCode::kNotFound;
    case Code::kNotSupported:
    case Code::kNoPermission:
      return StatusCode::kFailedPrecondition;
    case Code::kGpuIsLost:
      return StatusCode::kUnavailable;
    default:
      return StatusCode::kInternal;
  }
}

}  // namespace

Result<Library> Library::Open(const std::string& path) {
  void* const opened = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (opened == nullptr) return Unavailable(std::string("no NVML: ") + ::dlerror());
  Library library;
  SymbolFinder find(opened);
  find(library.Init, "nvmlInit_v2");
  find(library.Shutdown, "nvmlShutdown");
  find(library.ErrorString, "nvmlErrorString");
  find(library.DeviceByUuid, "nvmlDeviceGetHandleByUUID");
  find(library.EventSetCreate, "nvmlEventSetCreate");
  find(library.EventSetFree, "nvmlEventSetFree");
  find(library.RegisterEvents, "nvmlDeviceRegisterEvents");
  find(library.EventSetWait, "nvmlEventSetWait_v2");
  if (find.missing() != nullptr) {
    return Unavailable("NVML is too old: " + path + " has no " + find.missing());
  }
  return library;
}

Status ToStatus(const Library& library, Code code, std::string_view what) {
  if (code == Code::kSuccess) return {};
  const char* const text = library.ErrorString(code);
  return Status(CodeOf(code),
                std::string(what) + ": NVML: " + (text != nullptr ? text : "unknown error"));
}

}  // namespace rouse::nvml
