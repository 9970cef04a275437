// Ranges of GPU addresses that slabs are mapped into.

#include <cerrno>
#include <cstdint>
#include <map>
#include <new>

#include "connector/src/driver.h"
#include "connector/src/error.h"
#include "connector/src/rouse_connector.h"

struct rouse_gpu_arena {
  const rouse::connector::Driver* driver;
  CUdevice device;
  size_t granularity;
  CUdeviceptr address;             ///< The range is ours until rouse_gpu_arena_free.
  size_t bytes;                    ///< A multiple of the granularity.
  std::map<size_t, size_t> slabs;  ///< What is mapped: bytes by offset.
};

namespace rouse::connector {
namespace {

int SetAccess(const rouse_gpu_arena& arena, size_t offset, size_t bytes, bool writable) {
  CUmemAccessDesc access{};
  access.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  access.location.id = arena.device;
  access.flags = writable ? CU_MEM_ACCESS_FLAGS_PROT_READWRITE : CU_MEM_ACCESS_FLAGS_PROT_READ;
  return CudaStatus(*arena.driver,
                    arena.driver->mem_set_access(arena.address + offset, bytes, &access, 1),
                    "have access to a mapped slab");
}

bool Overlaps(const rouse_gpu_arena& arena, size_t offset, size_t bytes) {
  auto next = arena.slabs.lower_bound(offset);
  if (next != arena.slabs.end() && next->first < offset + bytes) return true;
  return next != arena.slabs.begin() && std::prev(next)->first + std::prev(next)->second > offset;
}

}  // namespace
}  // namespace rouse::connector

using rouse::connector::CudaStatus;
using rouse::connector::Driver;
using rouse::connector::Fail;
using rouse::connector::RoundUp;

int rouse_gpu_arena_reserve(size_t bytes, uint64_t at, rouse_gpu_arena** arena) {
  if (arena == nullptr) return Fail(EINVAL, "rouse_gpu_arena_reserve needs a place for the arena");
  *arena = nullptr;
  if (bytes == 0 || bytes > rouse::connector::kMaxArenaBytes) {
    return Fail(EINVAL, "an arena of %zu bytes cannot be reserved", bytes);
  }
  const Driver* const driver = rouse::connector::GetDriver();
  if (driver == nullptr) return -ENODEV;
  CUdevice device = 0;
  int result = CudaStatus(*driver, driver->ctx_get_device(&device), "find this thread's GPU");
  if (result < 0) return result;
  CUmemAllocationProp properties{};
  properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  properties.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  properties.location.id = device;
  properties.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
  size_t granularity = 0;
  result = CudaStatus(*driver,
                      driver->mem_get_allocation_granularity(&granularity, &properties,
                                                             CU_MEM_ALLOC_GRANULARITY_MINIMUM),
                      "map memory of this GPU");
  if (result < 0) return result;
  const size_t rounded = RoundUp(bytes, granularity);
  CUdeviceptr address = 0;
  result = CudaStatus(*driver, driver->mem_address_reserve(&address, rounded, 0, at, 0),
                      "reserve GPU addresses");
  if (result < 0) return result;
  if (at != 0 && address != at) {  // To the driver it is a wish.
    driver->mem_address_free(address, rounded);
    return Fail(EEXIST, "cannot reserve %zu bytes of GPU addresses at %#llx", rounded,
                static_cast<unsigned long long>(at));
  }
  *arena = new (std::nothrow) rouse_gpu_arena{driver, device, granularity, address, rounded, {}};
  if (*arena == nullptr) {
    driver->mem_address_free(address, rounded);
    return Fail(ENOMEM, "cannot reserve an arena");
  }
  return 0;
}

uint64_t rouse_gpu_arena_address(const rouse_gpu_arena* arena) {
  return arena->address;
}

int rouse_gpu_arena_map(rouse_gpu_arena* arena, size_t offset, size_t bytes, int fd,
                        enum rouse_gpu_access access) {
  if (access != ROUSE_GPU_READ && access != ROUSE_GPU_READ_WRITE) {
    return Fail(EINVAL, "unknown kind of access %d", static_cast<int>(access));
  }
  if (bytes == 0 || offset % arena->granularity != 0 || offset > arena->bytes ||
      bytes > arena->bytes - offset) {
    return Fail(EINVAL,
                "a slab of %zu bytes cannot be mapped at offset %zu of an arena of %zu bytes",
                bytes, offset, arena->bytes);
  }
  const size_t mapped = RoundUp(bytes, arena->granularity);
  if (rouse::connector::Overlaps(*arena, offset, mapped)) {
    return Fail(EEXIST, "there is a slab at offset %zu of the arena already", offset);
  }
  const Driver& driver = *arena->driver;
  CUmemGenericAllocationHandle handle = 0;
  int result = CudaStatus(driver,
                          driver.mem_import_from_shareable_handle(
                              &handle, reinterpret_cast<void*>(static_cast<intptr_t>(fd)),
                              CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR),
                          "import a slab of GPU memory");
  if (result < 0) return result;
  const CUdeviceptr address = arena->address + offset;
  result = CudaStatus(driver, driver.mem_map(address, mapped, 0, handle, 0),
                      "map a slab of GPU memory (is it as large as announced?)");
  driver.mem_release(handle);  // The mapping keeps the memory.
  if (result < 0) return result;
  result = rouse::connector::SetAccess(*arena, offset, mapped, access == ROUSE_GPU_READ_WRITE);
  if (result == 0) {
    try {
      arena->slabs.emplace(offset, mapped);
      return 0;
    } catch (const std::bad_alloc&) {
      result = Fail(ENOMEM, "cannot keep account of a slab");
    }
  }
  driver.mem_unmap(address, mapped);
  return result;
}

int rouse_gpu_arena_protect(rouse_gpu_arena* arena) {
  const Driver& driver = *arena->driver;
  int result = CudaStatus(driver, driver.ctx_synchronize(), "finish what writes to an arena");
  for (auto slab = arena->slabs.begin(); result == 0 && slab != arena->slabs.end(); ++slab) {
    result = rouse::connector::SetAccess(*arena, slab->first, slab->second, false);
  }
  return result;
}

int rouse_gpu_arena_unmap(rouse_gpu_arena* arena) {
  const Driver& driver = *arena->driver;
  int result = CudaStatus(driver, driver.ctx_synchronize(), "finish what uses an arena");
  while (result == 0 && !arena->slabs.empty()) {
    const auto slab = arena->slabs.begin();
    result = CudaStatus(driver, driver.mem_unmap(arena->address + slab->first, slab->second),
                        "unmap a slab of GPU memory");
    if (result == 0) arena->slabs.erase(slab);
  }
  return result;
}

void rouse_gpu_arena_free(rouse_gpu_arena* arena) {
  if (arena == nullptr) return;
  // Addresses under which something is still mapped must not be given to others.
  if (rouse_gpu_arena_unmap(arena) == 0) {
    arena->driver->mem_address_free(arena->address, arena->bytes);
  }
  delete arena;
}
