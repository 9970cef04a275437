// Owners of the driver's objects. For agent/cuda and agent/nccl.
//
// All need the device's context to be current (Current) when they are made and destroyed.

#pragma once

#include <cstdint>
#include <utility>

#include "agent/cuda/driver.h"

namespace rouse::cuda {

/// Owns one handle of type T; `destroy` is the Driver's member that ends it. Move-only.
template <typename T, auto destroy>
class Handle {
 public:
  Handle() = default;
  Handle(const Driver& driver, T handle) : driver_(&driver), handle_(handle) {}
  Handle(Handle&& other) noexcept
      : driver_(other.driver_), handle_(std::exchange(other.handle_, T{})) {}
  Handle& operator=(Handle&& other) noexcept {
    std::swap(driver_, other.driver_);
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Handle() {
    if (handle_ != T{}) (driver_->*destroy)(handle_);
  }

  T get() const { return handle_; }

 private:
  const Driver* driver_ = nullptr;
  T handle_{};
};

using Stream = Handle<CUstream, &Driver::cuStreamDestroy>;
using Event = Handle<CUevent, &Driver::cuEventDestroy>;
using Module = Handle<CUmodule, &Driver::cuModuleUnload>;
using DeviceBuffer = Handle<CUdeviceptr, &Driver::cuMemFree>;
using PinnedBuffer = Handle<void*, &Driver::cuMemFreeHost>;

inline Result<Stream> MakeStream(const Driver& driver) {
  CUstream stream = nullptr;
  ROUSE_CUDA_RETURN_IF_ERROR(driver, cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING),
                             "make a stream");
  return Stream(driver, stream);
}

inline Result<Event> MakeEvent(const Driver& driver) {
  CUevent event = nullptr;
  ROUSE_CUDA_RETURN_IF_ERROR(driver, cuEventCreate(&event, CU_EVENT_DISABLE_TIMING),
                             "make an event");
  return Event(driver, event);
}

inline Result<DeviceBuffer> MakeDeviceBuffer(const Driver& driver, std::uint64_t bytes) {
  CUdeviceptr buffer = 0;
  ROUSE_CUDA_RETURN_IF_ERROR(driver, cuMemAlloc(&buffer, bytes),
                             "allocate " + std::to_string(bytes) + " bytes on the GPU");
  return DeviceBuffer(driver, buffer);
}

inline Result<PinnedBuffer> MakePinnedBuffer(const Driver& driver, std::uint64_t bytes) {
  void* buffer = nullptr;
  ROUSE_CUDA_RETURN_IF_ERROR(driver, cuMemHostAlloc(&buffer, bytes, 0),
                             "allocate " + std::to_string(bytes) + " bytes of pinned memory");
  return PinnedBuffer(driver, buffer);
}

}  // namespace rouse::cuda
