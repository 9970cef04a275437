// libcuda, opened at run time. For agent/cuda and agent/nccl: nothing else has CUDA's headers.

#pragma once

#include <cuda.h>

#include <cstddef>
#include <string>
#include <string_view>

#include "common/result.h"

// The driver's functions that Rouse calls. <cuda.h> defines many of these names as macros for the
// current version of a function; X is given the name with its version.
// (clang-format would break the list anew each time.)
// clang-format off
#define ROUSE_CUDA_CALLS(X)                                                                       \
  X(cuInit)                                                                                       \
  X(cuDriverGetVersion)                                                                           \
  X(cuGetErrorName)                                                                               \
  X(cuGetErrorString) X(cuDeviceGetCount) X(cuDeviceGet) X(cuDeviceGetName) X(cuDeviceGetUuid)    \
      X(cuDeviceGetAttribute) X(cuDeviceGetPCIBusId) X(cuDeviceCanAccessPeer) X(                  \
          cuDevicePrimaryCtxRetain) X(cuDevicePrimaryCtxRelease) X(cuCtxPushCurrent)              \
          X(cuCtxSetLimit)                                                                        \
          X(cuCtxPopCurrent) X(cuCtxSynchronize) X(cuMemGetInfo) X(cuMemGetAllocationGranularity) \
              X(cuMemCreate) X(cuMemRelease) X(cuMemAddressReserve) X(cuMemAddressFree)           \
                  X(cuMemMap) X(cuMemUnmap) X(cuMemSetAccess) X(cuMemExportToShareableHandle)     \
                      X(cuMemImportFromShareableHandle) X(cuMemAlloc) X(cuMemFree)                \
                          X(cuMemHostAlloc) X(cuMemFreeHost) X(cuMemcpyDtoH) X(cuMemcpyHtoD)      \
                              X(cuMemHostRegister) X(cuMemHostUnregister)                         \
                              X(cuMemcpyDtoDAsync) X(cuMemcpyDtoHAsync) X(cuMemcpyHtoDAsync)      \
                                  X(cuStreamCreate) X(cuStreamDestroy) X(cuStreamSynchronize)     \
                                      X(cuStreamWaitEvent) X(cuEventCreate) X(cuEventDestroy)     \
                                          X(cuEventRecord) X(cuEventQuery) X(cuModuleLoadData)    \
                                              X(cuModuleUnload) X(cuModuleGetFunction)            \
                                                  X(cuLaunchKernel)
// clang-format on

namespace rouse::cuda {

/// The driver's functions, found once.
struct Driver {
#define ROUSE_CUDA_MEMBER(name) decltype(&::name) name = nullptr;
  ROUSE_CUDA_CALLS(ROUSE_CUDA_MEMBER)
#undef ROUSE_CUDA_MEMBER

  /// Opens libcuda and initialises it; later calls give the same answer. Unavailable, with the
  /// reason, where there is no driver or no GPU.
  static Result<const Driver*> Get();
};

/// An address as the driver wants it.
inline CUdeviceptr Address(const std::byte* address) {
  return reinterpret_cast<CUdeviceptr>(address);
}

/// Ok, or what CUDA says of `code`, as "`what`: CUDA_ERROR_...: text".
Status ToStatus(const Driver& driver, CUresult code, std::string_view what);

}  // namespace rouse::cuda

/// Returns the Status of a driver call from the calling function unless it succeeded.
#define ROUSE_CUDA_RETURN_IF_ERROR(driver, call, what) \
  ROUSE_RETURN_IF_ERROR(::rouse::cuda::ToStatus(driver, (driver).call, what))
