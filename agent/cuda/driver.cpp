#include "agent/cuda/driver.h"

#include <dlfcn.h>

#include "common/symbol_finder.h"

namespace rouse::cuda {
namespace {

Result<Driver> Open() {
  void* const library = ::dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return Unavailable(std::string("no CUDA driver: ") + ::dlerror());
  Driver driver;
  SymbolFinder find(library);
#define ROUSE_CUDA_NAME(name) #name
#define ROUSE_CUDA_FIND(name) find(driver.name, ROUSE_CUDA_NAME(name));
  ROUSE_CUDA_CALLS(ROUSE_CUDA_FIND)
#undef ROUSE_CUDA_FIND
#undef ROUSE_CUDA_NAME
  if (find.missing() != nullptr) {
    return Unavailable(std::string("the CUDA driver is too old: libcuda.so.1 has no ") +
                       find.missing());
  }
  ROUSE_CUDA_RETURN_IF_ERROR(driver, cuInit(0), "initialise the CUDA driver");
  int devices = 0;
  ROUSE_CUDA_RETURN_IF_ERROR(driver, cuDeviceGetCount(&devices), "count GPUs");
  if (devices == 0) return Unavailable("the CUDA driver sees no GPU");
  return driver;
}

StatusCode CodeOf(CUresult code) {
  switch (code) {
    case CUDA_ERROR_OUT_OF_MEMORY:
      return StatusCode::kResourceExhausted;
    case CUDA_ERROR_INVALID_VALUE:
      return StatusCode::kInvalidArgument;
    case CUDA_ERROR_NO_DEVICE:
    case CUDA_ERROR_NOT_INITIALIZED:
    case CUDA_ERROR_STUB_LIBRARY:
    case CUDA_ERROR_SYSTEM_DRIVER_MISMATCH:
    case CUDA_ERROR_DEVICE_UNAVAILABLE:
      return StatusCode::kUnavailable;
    default:
      return StatusCode::kInternal;
  }
}

}  // namespace

Result<const Driver*> Driver::Get() {
  static const Result<Driver> driver = Open();
  if (!driver.ok()) return driver.status();
  return &*driver;
}

Status ToStatus(const Driver& driver, CUresult code, std::string_view what) {
  if (code == CUDA_SUCCESS) return {};
  const char* name = nullptr;
  const char* text = nullptr;
  driver.cuGetErrorName(code, &name);
  driver.cuGetErrorString(code, &text);
  return Status(CodeOf(code), std::string(what) + ": " +
                                  (name != nullptr ? name : std::to_string(code)) + ": " +
                                  (text != nullptr ? text : "unknown error"));
}

}  // namespace rouse::cuda
