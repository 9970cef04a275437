// Stands in for libcuda.so.1: "GPU memory" is memfds, mapped into this process.

#include <cuda.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>

namespace {

constexpr size_t kGranularity = size_t{2} << 20;
constexpr size_t kPage = 4096;
constexpr size_t kTotalMemory = size_t{64} << 20;

void* At(CUdeviceptr address) {
  return reinterpret_cast<void*>(address);
}

}  // namespace

// What tests set and look at.
extern "C" {
int rouse_fake_cuda_creates_left = 1 << 30;  ///< How many more times cuMemCreate succeeds.
size_t rouse_fake_cuda_stack = 1024;
void* rouse_fake_cuda_registered = nullptr;  ///< Host memory; null: none.
unsigned rouse_fake_cuda_register_flags = 0;
}

// cuda.h declares all of these, with C linkage and the version in the name where there is one.

CUresult cuGetErrorName(CUresult code, const char** name) {
  *name = code == CUDA_ERROR_INVALID_VALUE   ? "CUDA_ERROR_INVALID_VALUE"
          : code == CUDA_ERROR_OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY"
                                             : "CUDA_ERROR_UNKNOWN";
  return CUDA_SUCCESS;
}

CUresult cuCtxGetDevice(CUdevice* device) {
  *device = 0;
  return CUDA_SUCCESS;
}

CUresult cuCtxSynchronize() {
  return CUDA_SUCCESS;
}

CUresult cuCtxGetLimit(size_t* value, CUlimit limit) {
  if (limit != CU_LIMIT_STACK_SIZE) return CUDA_ERROR_INVALID_VALUE;
  *value = rouse_fake_cuda_stack;
  return CUDA_SUCCESS;
}

CUresult cuCtxSetLimit(CUlimit limit, size_t value) {
  if (limit != CU_LIMIT_STACK_SIZE || value > (512u << 10)) return CUDA_ERROR_INVALID_VALUE;
  rouse_fake_cuda_stack = value;
  return CUDA_SUCCESS;
}

CUresult cuDeviceTotalMem(size_t* bytes, CUdevice) {
  *bytes = kTotalMemory;
  return CUDA_SUCCESS;
}

CUresult cuMemHostRegister(void* address, size_t, unsigned flags) {
  if (rouse_fake_cuda_registered != nullptr) return CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
  rouse_fake_cuda_registered = address;
  rouse_fake_cuda_register_flags = flags;
  return CUDA_SUCCESS;
}

CUresult cuMemHostUnregister(void* address) {
  if (rouse_fake_cuda_registered != address) return CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
  rouse_fake_cuda_registered = nullptr;
  return CUDA_SUCCESS;
}

CUresult cuMemAlloc(CUdeviceptr* address, size_t bytes) {
  // A page before it knows how large it is, for cuMemFree.
  void* mapped =
      mmap(nullptr, bytes + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
  *static_cast<size_t*>(mapped) = bytes + kPage;
  *address = reinterpret_cast<CUdeviceptr>(mapped) + kPage;
  return CUDA_SUCCESS;
}

CUresult cuMemFree(CUdeviceptr address) {
  void* const mapped = At(address - kPage);
  return munmap(mapped, *static_cast<size_t*>(mapped)) == 0 ? CUDA_SUCCESS
                                                            : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemGetAllocationGranularity(size_t* granularity, const CUmemAllocationProp*,
                                       CUmemAllocationGranularity_flags) {
  *granularity = kGranularity;
  return CUDA_SUCCESS;
}

CUresult cuMemAddressReserve(CUdeviceptr* address, size_t bytes, size_t, CUdeviceptr at,
                             unsigned long long) {
  void* mapped = mmap(At(at), bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
  *address = reinterpret_cast<CUdeviceptr>(mapped);
  return CUDA_SUCCESS;
}

CUresult cuMemAddressFree(CUdeviceptr address, size_t bytes) {
  return munmap(At(address), bytes) == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemCreate(CUmemGenericAllocationHandle* handle, size_t bytes, const CUmemAllocationProp*,
                     unsigned long long) {
  if (rouse_fake_cuda_creates_left-- <= 0) return CUDA_ERROR_OUT_OF_MEMORY;
  const int fd = memfd_create("gpu-memory", MFD_CLOEXEC);
  if (fd < 0 || ftruncate(fd, static_cast<off_t>(bytes)) < 0) return CUDA_ERROR_OUT_OF_MEMORY;
  *handle = static_cast<CUmemGenericAllocationHandle>(fd);
  return CUDA_SUCCESS;
}

CUresult cuMemImportFromShareableHandle(CUmemGenericAllocationHandle* handle, void* descriptor,
                                        CUmemAllocationHandleType) {
  const int fd = dup(static_cast<int>(reinterpret_cast<intptr_t>(descriptor)));
  *handle = static_cast<CUmemGenericAllocationHandle>(fd);
  return fd >= 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
  return close(static_cast<int>(handle)) == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemMap(CUdeviceptr address, size_t bytes, size_t, CUmemGenericAllocationHandle handle,
                  unsigned long long) {
  const int fd = static_cast<int>(handle);
  if (lseek(fd, 0, SEEK_END) < static_cast<off_t>(bytes)) return CUDA_ERROR_INVALID_VALUE;
  void* mapped = mmap(At(address), bytes, PROT_NONE, MAP_SHARED | MAP_FIXED, fd, 0);
  return mapped != MAP_FAILED ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemUnmap(CUdeviceptr address, size_t bytes) {
  void* mapped = mmap(At(address), bytes, PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  return mapped != MAP_FAILED ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemSetAccess(CUdeviceptr address, size_t bytes, const CUmemAccessDesc* access, size_t) {
  const bool write = access->flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  const int protection = write ? PROT_READ | PROT_WRITE : PROT_READ;
  return mprotect(At(address), bytes, protection) == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemsetD8Async(CUdeviceptr address, unsigned char value, size_t bytes, CUstream) {
  std::memset(At(address), value, bytes);
  return CUDA_SUCCESS;
}
