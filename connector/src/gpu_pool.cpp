// Memory of one GPU that can be given back and taken again at the same addresses.
//
// All of it lies in one range of addresses, side by side, so that what comes back needs few and
// large allocations, however many the engine asked for.

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

// Physical memory comes back in pieces of this size: each one costs time, whatever its size.
constexpr size_t kPieceBytes = size_t{4} << 30;

// Of addresses reserved, so many times the GPU's memory: what is freed leaves gaps.
constexpr size_t kReserveFactor = 2;

class GpuPool {
 public:
  void* Allocate(size_t bytes) {
    const std::lock_guard lock(mutex_);
    if (Reserve() < 0) return nullptr;
    if (released_) {
      Fail(ENOMEM, "cannot allocate %zu bytes while the pool's memory is given back", bytes);
      return nullptr;
    }
    const size_t rounded = RoundUp(std::max<size_t>(bytes, 1), granularity_);
    const size_t offset = Gap(rounded);
    if (bytes > reserved_ || rounded > reserved_ - offset) {
      Fail(ENOMEM, "there is no room for %zu bytes among %zu bytes of addresses", bytes, reserved_);
      return nullptr;
    }
    if (Map(offset, rounded) < 0) return nullptr;
    try {
      used_.emplace(offset, rounded);
    } catch (const std::bad_alloc&) {
      Fail(ENOMEM, "cannot keep account of an allocation");
      UnmapUnused();
      return nullptr;
    }
    return reinterpret_cast<void*>(base_ + offset);
  }

  void Free(void* address) {
    const std::lock_guard lock(mutex_);
    used_.erase(static_cast<size_t>(reinterpret_cast<CUdeviceptr>(address) - base_));
    if (!mapped_.empty() && driver_->ctx_synchronize() == CUDA_SUCCESS) UnmapUnused();
  }

  int Release() {
    const std::lock_guard lock(mutex_);
    if (driver_ == nullptr) return 0;
    int result = CudaStatus(*driver_, driver_->ctx_synchronize(), "finish what uses a pool");
    if (result == 0) result = UnmapAll();
    if (result == 0) released_ = true;
    return result;
  }

  int Restore() {
    const std::lock_guard lock(mutex_);
    if (!released_) return 0;
    int result = 0;
    for (auto first = used_.begin(); result == 0 && first != used_.end();) {
      size_t end = first->first;
      auto next = first;
      for (; next != used_.end() && next->first == end; ++next) end += next->second;
      result = MapCleared(first->first, end - first->first);
      first = next;
    }
    if (result < 0) {
      UnmapAll();
      return result;
    }
    released_ = false;
    return 0;
  }

  size_t Bytes() {
    const std::lock_guard lock(mutex_);
    size_t sum = 0;
    for (const auto& [offset, bytes] : used_) sum += bytes;
    return sum;
  }

 private:
  /// Finds the GPU and takes the addresses, at the first call.
  int Reserve() {
    if (base_ != 0) return 0;
    const Driver* const driver = GetDriver();
    if (driver == nullptr) return -ENODEV;
    int result = CudaStatus(*driver, driver->ctx_get_device(&device_), "find this thread's GPU");
    size_t total = 0;
    if (result == 0) {
      result = CudaStatus(*driver, driver->device_total_mem(&total, device_), "ask for its memory");
    }
    const CUmemAllocationProp properties = Properties();
    if (result == 0) {
      result = CudaStatus(*driver,
                          driver->mem_get_allocation_granularity(&granularity_, &properties,
                                                                 CU_MEM_ALLOC_GRANULARITY_MINIMUM),
                          "map memory of this GPU");
    }
    if (result < 0) return result;
    reserved_ = RoundUp(kReserveFactor * total, granularity_);
    result = CudaStatus(*driver, driver->mem_address_reserve(&base_, reserved_, 0, 0, 0),
                        "reserve GPU addresses");
    if (result == 0) driver_ = driver;
    return result;
  }

  CUmemAllocationProp Properties() const {
    CUmemAllocationProp properties{};  // Nothing of it is exported, which would cost time.
    properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    properties.location.id = device_;
    return properties;
  }

  /// The first offset behind which so many bytes have nothing mapped.
  size_t Gap(size_t bytes) const {
    size_t at = 0;
    for (const auto& [offset, mapped] : mapped_) {
      if (offset - at >= bytes) break;
      at = offset + mapped;
    }
    return at;
  }

  int Map(size_t offset, size_t bytes) {
    const CUmemAllocationProp properties = Properties();
    const size_t end = offset + bytes;
    int result = 0;
    for (size_t at = offset; result == 0 && at < end;) {
      const size_t piece = std::min(kPieceBytes, end - at);
      CUmemGenericAllocationHandle handle = 0;
      result = CudaStatus(*driver_, driver_->mem_create(&handle, piece, &properties, 0),
                          "take GPU memory for the pool");
      if (result < 0) break;
      result = CudaStatus(*driver_, driver_->mem_map(base_ + at, piece, 0, handle, 0),
                          "map GPU memory of the pool");
      driver_->mem_release(handle);  // The mapping keeps the memory.
      if (result < 0) break;
      try {
        mapped_.emplace(at, piece);
      } catch (const std::bad_alloc&) {
        driver_->mem_unmap(base_ + at, piece);
        result = Fail(ENOMEM, "cannot keep account of a piece of memory");
      }
      at += piece;
    }
    CUmemAccessDesc access{};
    access.location = properties.location;
    access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    if (result == 0) {
      result = CudaStatus(*driver_, driver_->mem_set_access(base_ + offset, bytes, &access, 1),
                          "have access to memory of the pool");
    }
    if (result < 0) UnmapUnused();
    return result;
  }

  int MapCleared(size_t offset, size_t bytes) {
    const int result = Map(offset, bytes);
    if (result < 0) return result;
    return CudaStatus(*driver_, driver_->memset_d8_async(base_ + offset, 0, bytes, nullptr),
                      "clear memory of the pool");
  }

  bool IsUsed(size_t offset, size_t bytes) const {
    auto next = used_.lower_bound(offset);
    if (next != used_.end() && next->first < offset + bytes) return true;
    return next != used_.begin() && std::prev(next)->first + std::prev(next)->second > offset;
  }

  /// A piece that came back for several allocations goes with the last of them.
  void UnmapUnused() {
    for (auto piece = mapped_.begin(); piece != mapped_.end();) {
      const bool gone = !IsUsed(piece->first, piece->second) &&
                        driver_->mem_unmap(base_ + piece->first, piece->second) == CUDA_SUCCESS;
      piece = gone ? mapped_.erase(piece) : std::next(piece);
    }
  }

  int UnmapAll() {
    while (!mapped_.empty()) {
      const auto piece = mapped_.begin();
      const int result =
          CudaStatus(*driver_, driver_->mem_unmap(base_ + piece->first, piece->second),
                     "unmap a pool's memory");
      if (result < 0) return result;
      mapped_.erase(piece);
    }
    return 0;
  }

  std::mutex mutex_;
  const Driver* driver_ = nullptr;  ///< Null until the addresses are reserved.
  CUdevice device_ = 0;
  size_t granularity_ = 0;
  CUdeviceptr base_ = 0;
  size_t reserved_ = 0;
  bool released_ = false;
  std::map<size_t, size_t> used_;    ///< What the engine has: bytes by offset.
  std::map<size_t, size_t> mapped_;  ///< Pieces of memory: bytes by offset.
};

/// Never destroyed: torch may free what it has while the process ends.
GpuPool& Pool() {
  static GpuPool* const pool = new GpuPool;
  return *pool;
}

}  // namespace
}  // namespace rouse::connector

void* rouse_gpu_pool_allocate(size_t bytes, int, void*) {
  return rouse::connector::Pool().Allocate(bytes);
}

void rouse_gpu_pool_free(void* address, size_t, int, void*) {
  rouse::connector::Pool().Free(address);
}

int rouse_gpu_pool_release(void) {
  return rouse::connector::Pool().Release();
}

int rouse_gpu_pool_restore(void) {
  return rouse::connector::Pool().Restore();
}

size_t rouse_gpu_pool_bytes(void) {
  return rouse::connector::Pool().Bytes();
}
