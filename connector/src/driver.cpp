#include "connector/src/driver.h"

#include <dlfcn.h>

#include <cerrno>
#include <type_traits>

#include "connector/src/error.h"

namespace rouse::connector {
namespace {

// Names with their version, which <cuda.h> gives to some functions by a macro.
#define ROUSE_NAME(name) #name
#define ROUSE_EXPORTED(name) ROUSE_NAME(name)

/// The name that is missing, or null.
const char* Open(Driver* driver, void* library) {
  const char* missing = nullptr;
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
    if (function == nullptr) missing = name;
  };
  find(driver->get_error_name, ROUSE_EXPORTED(cuGetErrorName));
  find(driver->ctx_get_device, ROUSE_EXPORTED(cuCtxGetDevice));
  find(driver->ctx_synchronize, ROUSE_EXPORTED(cuCtxSynchronize));
  find(driver->ctx_get_limit, ROUSE_EXPORTED(cuCtxGetLimit));
  find(driver->ctx_set_limit, ROUSE_EXPORTED(cuCtxSetLimit));
  find(driver->device_total_mem, ROUSE_EXPORTED(cuDeviceTotalMem));
  find(driver->mem_alloc, ROUSE_EXPORTED(cuMemAlloc));
  find(driver->mem_free, ROUSE_EXPORTED(cuMemFree));
  find(driver->mem_host_register, ROUSE_EXPORTED(cuMemHostRegister));
  find(driver->mem_host_unregister, ROUSE_EXPORTED(cuMemHostUnregister));
  find(driver->mem_get_allocation_granularity, ROUSE_EXPORTED(cuMemGetAllocationGranularity));
  find(driver->mem_address_reserve, ROUSE_EXPORTED(cuMemAddressReserve));
  find(driver->mem_address_free, ROUSE_EXPORTED(cuMemAddressFree));
  find(driver->mem_create, ROUSE_EXPORTED(cuMemCreate));
  find(driver->mem_import_from_shareable_handle, ROUSE_EXPORTED(cuMemImportFromShareableHandle));
  find(driver->mem_release, ROUSE_EXPORTED(cuMemRelease));
  find(driver->mem_map, ROUSE_EXPORTED(cuMemMap));
  find(driver->mem_unmap, ROUSE_EXPORTED(cuMemUnmap));
  find(driver->mem_set_access, ROUSE_EXPORTED(cuMemSetAccess));
  find(driver->memset_d8_async, ROUSE_EXPORTED(cuMemsetD8Async));
  return missing;
}

int ErrnoOf(CUresult code) {
  switch (code) {
    case CUDA_ERROR_OUT_OF_MEMORY:
      return ENOMEM;
    case CUDA_ERROR_INVALID_VALUE:
    case CUDA_ERROR_INVALID_DEVICE:
      return EINVAL;
    case CUDA_ERROR_NOT_INITIALIZED:
    case CUDA_ERROR_INVALID_CONTEXT:
    case CUDA_ERROR_NO_DEVICE:
      return ENODEV;
    default:
      return EIO;
  }
}

}  // namespace

const char* driver_library = "libcuda.so.1";

const Driver* GetDriver() {
  struct Opened {
    Driver driver;
    const char* missing = nullptr;
    bool there = false;
  };
  static const Opened opened = [] {
    Opened out;
    void* const library = dlopen(driver_library, RTLD_NOW | RTLD_LOCAL);
    out.there = library != nullptr;
    if (out.there) out.missing = Open(&out.driver, library);
    return out;
  }();
  if (!opened.there) {
    Fail(ENODEV, "there is no CUDA driver (%s cannot be opened)", driver_library);
    return nullptr;
  }
  if (opened.missing != nullptr) {
    Fail(ENODEV, "the CUDA driver is too old: it has no %s", opened.missing);
    return nullptr;
  }
  return &opened.driver;
}

int CudaStatus(const Driver& driver, CUresult code, const char* what) {
  if (code == CUDA_SUCCESS) return 0;
  const char* name = nullptr;
  driver.get_error_name(code, &name);
  return Fail(ErrnoOf(code), "cannot %s: %s", what, name != nullptr ? name : "an unknown error");
}

}  // namespace rouse::connector
