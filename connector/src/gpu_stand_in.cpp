// GPU memory that stands in for weights whose bytes come from elsewhere.
//
// Every large allocation has addresses of its own, behind all of which lie the same few megabytes.

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <map>
#include <mutex>
#include <new>

#include "connector/src/driver.h"
#include "connector/src/error.h"
#include "connector/src/rouse_connector.h"

namespace rouse::connector {
namespace {

// What is shared. One mapping a piece, so it is large; what is written to it fits into few caches.
constexpr size_t kSharedBytes = size_t{256} << 20;

class StandIn {
 public:
  void* Allocate(size_t bytes) {
    const std::lock_guard lock(mutex_);
    const Driver* const driver = GetDriver();
    if (driver == nullptr) return nullptr;
    CUdeviceptr address = 0;
    if (bytes < ROUSE_GPU_STAND_IN_LEAST) {
      const CUresult code = driver->mem_alloc(&address, std::max<size_t>(bytes, 1));
      return CudaStatus(*driver, code, "take GPU memory") < 0 ? nullptr : Pointer(address);
    }
    if (bytes > kMaxBytes) {
      Fail(ENOMEM, "%zu bytes are more than any GPU has", bytes);
      return nullptr;
    }
    const size_t reserved = RoundUp(bytes, kSharedBytes);
    if (Share(*driver) == 0 && Map(*driver, reserved, &address) == 0) {
      try {
        large_.emplace(address, Large{bytes, reserved});
        return Pointer(address);
      } catch (const std::bad_alloc&) {
        Fail(ENOMEM, "cannot keep account of an allocation");
        Unmap(*driver, address, reserved, reserved);
      }
    }
    Unshare(*driver);
    return nullptr;
  }

  void Free(void* pointer) {
    const std::lock_guard lock(mutex_);
    const Driver* const driver = GetDriver();
    if (driver == nullptr || pointer == nullptr) return;
    const CUdeviceptr address = reinterpret_cast<CUdeviceptr>(pointer);
    const auto found = large_.find(address);
    if (found == large_.end()) {
      driver->mem_free(address);
      return;
    }
    if (driver->ctx_synchronize() != CUDA_SUCCESS) return;  // Something may still write there.
    Unmap(*driver, address, found->second.reserved, found->second.reserved);
    large_.erase(found);
    Unshare(*driver);
  }

  bool Holds(std::uint64_t address) {
    const std::lock_guard lock(mutex_);
    auto next = large_.upper_bound(address);
    if (next == large_.begin()) return false;
    --next;
    return address - next->first < next->second.reserved;
  }

  size_t Bytes() {
    const std::lock_guard lock(mutex_);
    size_t sum = 0;
    for (const auto& [address, large] : large_) sum += large.bytes;
    return sum;
  }

 private:
  struct Large {
    size_t bytes;
    size_t reserved;  ///< Of addresses.
  };

  // Bounded so that rounding up cannot overflow.
  static constexpr size_t kMaxBytes = size_t{1} << 46;

  static void* Pointer(CUdeviceptr address) { return reinterpret_cast<void*>(address); }

  int Share(const Driver& driver) {
    if (shared_ != 0) return 0;
    CUmemAllocationProp properties{};
    properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    const int result =
        CudaStatus(driver, driver.ctx_get_device(&device_), "find this thread's GPU");
    if (result < 0) return result;
    properties.location.id = device_;
    return CudaStatus(driver, driver.mem_create(&shared_, kSharedBytes, &properties, 0),
                      "take GPU memory that stands in for weights");
  }

  /// When nobody has a share any more.
  void Unshare(const Driver& driver) {
    if (shared_ == 0 || !large_.empty()) return;
    driver.mem_release(shared_);
    shared_ = 0;
  }

  int Map(const Driver& driver, size_t reserved, CUdeviceptr* address) {
    int result = CudaStatus(driver, driver.mem_address_reserve(address, reserved, 0, 0, 0),
                            "reserve GPU addresses");
    if (result < 0) return result;
    size_t mapped = 0;
    while (result == 0 && mapped < reserved) {
      result = CudaStatus(driver, driver.mem_map(*address + mapped, kSharedBytes, 0, shared_, 0),
                          "map GPU memory that stands in for weights");
      if (result == 0) mapped += kSharedBytes;
    }
    CUmemAccessDesc access{};
    access.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    access.location.id = device_;
    access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    if (result == 0) {
      result = CudaStatus(driver, driver.mem_set_access(*address, reserved, &access, 1),
                          "have access to memory that stands in for weights");
    }
    if (result < 0) Unmap(driver, *address, mapped, reserved);
    return result;
  }

  static void Unmap(const Driver& driver, CUdeviceptr address, size_t mapped, size_t reserved) {
    for (size_t at = 0; at < mapped; at += kSharedBytes) {
      if (driver.mem_unmap(address + at, kSharedBytes) != CUDA_SUCCESS) return;
    }
    driver.mem_address_free(address, reserved);
  }

  std::mutex mutex_;
  CUdevice device_ = 0;
  CUmemGenericAllocationHandle shared_ = 0;  ///< 0: none.
  std::map<CUdeviceptr, Large> large_;       ///< By address.
};

/// Never destroyed: torch may free what it has while the process ends.
StandIn& Memory() {
  static StandIn* const memory = new StandIn;
  return *memory;
}

}  // namespace
}  // namespace rouse::connector

void* rouse_gpu_stand_in_allocate(size_t bytes, int, void*) {
  return rouse::connector::Memory().Allocate(bytes);
}

void rouse_gpu_stand_in_free(void* address, size_t, int, void*) {
  rouse::connector::Memory().Free(address);
}

int rouse_gpu_stand_in_holds(uint64_t address) {
  return rouse::connector::Memory().Holds(address) ? 1 : 0;
}

size_t rouse_gpu_stand_in_bytes(void) {
  return rouse::connector::Memory().Bytes();
}
