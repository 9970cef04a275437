// libcuda, opened when something of a GPU is first asked for: the engine has it loaded by then.

#pragma once

#include <cuda.h>

#include <cstddef>

namespace rouse::connector {

/// `value` rounded up to a multiple of `unit`; the caller sees to it that nothing overflows.
constexpr std::size_t RoundUp(std::size_t value, std::size_t unit) {
  return (value + unit - 1) / unit * unit;
}

/// Of arenas, bounded so that rounding up cannot overflow.
constexpr std::size_t kMaxArenaBytes = std::size_t{1} << 46;

/// The driver's functions that are called here. The names are those that libcuda exports.
struct Driver {
  decltype(&::cuGetErrorName) get_error_name = nullptr;
  decltype(&::cuCtxGetDevice) ctx_get_device = nullptr;
  decltype(&::cuCtxSynchronize) ctx_synchronize = nullptr;
  decltype(&::cuCtxGetLimit) ctx_get_limit = nullptr;
  decltype(&::cuCtxSetLimit) ctx_set_limit = nullptr;
  decltype(&::cuDeviceTotalMem) device_total_mem = nullptr;
  decltype(&::cuMemAlloc) mem_alloc = nullptr;
  decltype(&::cuMemFree) mem_free = nullptr;
  decltype(&::cuMemHostRegister) mem_host_register = nullptr;
  decltype(&::cuMemHostUnregister) mem_host_unregister = nullptr;
  decltype(&::cuMemGetAllocationGranularity) mem_get_allocation_granularity = nullptr;
  decltype(&::cuMemAddressReserve) mem_address_reserve = nullptr;
  decltype(&::cuMemAddressFree) mem_address_free = nullptr;
  decltype(&::cuMemCreate) mem_create = nullptr;
  decltype(&::cuMemImportFromShareableHandle) mem_import_from_shareable_handle = nullptr;
  decltype(&::cuMemRelease) mem_release = nullptr;
  decltype(&::cuMemMap) mem_map = nullptr;
  decltype(&::cuMemUnmap) mem_unmap = nullptr;
  decltype(&::cuMemSetAccess) mem_set_access = nullptr;
  decltype(&::cuMemsetD8Async) memset_d8_async = nullptr;
};

/// What is opened; tests set another library before the first call.
extern const char* driver_library;

/// The driver, or null with the reason in rouse_last_error().
const Driver* GetDriver();

/// 0, or as Fail, with `what` and what CUDA calls the error.
int CudaStatus(const Driver& driver, CUresult code, const char* what);

}  // namespace rouse::connector
