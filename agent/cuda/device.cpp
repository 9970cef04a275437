#include "agent/cuda/device.h"

#include <array>
#include <cstdio>

#include "agent/cuda/driver.h"

namespace rouse::cuda {
namespace {

std::string UuidText(const CUuuid& uuid) {
  std::string text = "GPU-";
  for (std::size_t i = 0; i < sizeof uuid.bytes; ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    std::array<char, 3> two{};
    std::snprintf(two.data(), two.size(), "%02x", static_cast<unsigned char>(uuid.bytes[i]));
    text += two.data();
  }
  return text;
}

int Attribute(const Driver& driver, CUdevice_attribute attribute, CUdevice device) {
  int value = 0;
  return driver.cuDeviceGetAttribute(&value, attribute, device) == CUDA_SUCCESS ? value : 0;
}

}  // namespace

Result<int> DeviceCount() {
  ROUSE_ASSIGN_OR_RETURN(const Driver* const driver, Driver::Get());
  int count = 0;
  ROUSE_CUDA_RETURN_IF_ERROR(*driver, cuDeviceGetCount(&count), "count GPUs");
  return count;
}

Result<std::string> DeviceUuid(int ordinal) {
  ROUSE_ASSIGN_OR_RETURN(const Driver* const driver, Driver::Get());
  const std::string what = "look at GPU " + std::to_string(ordinal);
  CUdevice device = 0;
  ROUSE_CUDA_RETURN_IF_ERROR(*driver, cuDeviceGet(&device, ordinal), what);
  CUuuid uuid{};
  ROUSE_CUDA_RETURN_IF_ERROR(*driver, cuDeviceGetUuid(&uuid, device), what);
  return UuidText(uuid);
}

std::vector<std::string> DeviceNames() {
  std::vector<std::string> names;
  const auto driver = Driver::Get();
  const auto count = driver.ok() ? DeviceCount() : driver.status();
  for (int ordinal = 0; count.ok() && ordinal < *count; ++ordinal) {
    CUdevice device = 0;
    std::array<char, 128> text{};
    if ((*driver)->cuDeviceGet(&device, ordinal) == CUDA_SUCCESS &&
        (*driver)->cuDeviceGetName(text.data(), static_cast<int>(text.size()), device) ==
            CUDA_SUCCESS) {
      names.emplace_back(text.data());
    }
  }
  return names;
}

Result<std::shared_ptr<const Device>> Device::Open(const std::string& uuid) {
  ROUSE_ASSIGN_OR_RETURN(const int count, DeviceCount());
  for (int ordinal = 0; ordinal < count; ++ordinal) {
    ROUSE_ASSIGN_OR_RETURN(const std::string candidate, DeviceUuid(ordinal));
    if (candidate == uuid) return Open(ordinal);
  }
  return NotFound("none of the " + std::to_string(count) + " GPUs that the agent sees is " +
                  uuid.substr(0, 64) + ": give its container the GPUs of the engine's");
}

Result<std::shared_ptr<const Device>> Device::Open(int ordinal) {
  ROUSE_ASSIGN_OR_RETURN(const Driver* const found, Driver::Get());
  const Driver& driver = *found;
  std::shared_ptr<Device> device(new Device(driver, ordinal));
  const std::string what = "open GPU " + std::to_string(ordinal);
  ROUSE_CUDA_RETURN_IF_ERROR(driver, cuDeviceGet(&device->handle_, ordinal), what);
  std::array<char, 128> text{};
  ROUSE_CUDA_RETURN_IF_ERROR(
      driver, cuDeviceGetName(text.data(), static_cast<int>(text.size()), device->handle_), what);
  device->name_ = text.data();
  ROUSE_CUDA_RETURN_IF_ERROR(
      driver, cuDeviceGetPCIBusId(text.data(), static_cast<int>(text.size()), device->handle_),
      what);
  device->pci_ = text.data();
  ROUSE_ASSIGN_OR_RETURN(device->uuid_, DeviceUuid(ordinal));
  const auto attribute = [&](CUdevice_attribute which) {
    return Attribute(driver, which, device->handle_);
  };
  if (attribute(CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED) == 0 ||
      attribute(CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED) == 0) {
    return FailedPrecondition(what + " (" + device->name_ +
                              "): it cannot share memory by file descriptor");
  }
  device->rdma_ = attribute(CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED) != 0;
  device->multiprocessors_ = attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
  CUcontext context = nullptr;
  ROUSE_CUDA_RETURN_IF_ERROR(driver, cuDevicePrimaryCtxRetain(&context, device->handle_),
                             what + ": make its primary context");
  device->context_ = context;
  // Every thread that the GPU can hold has a stack, which is half of what a context takes of its
  // memory (260 MiB of an H200). Our kernels use none; what others need, the driver takes when they
  // are launched.
  constexpr std::size_t kStackBytes = 16;
  const Current current(*device);
  ROUSE_CUDA_RETURN_IF_ERROR(driver, cuCtxSetLimit(CU_LIMIT_STACK_SIZE, kStackBytes),
                             what + ": make its threads' stacks small");
  CUmemAllocationProp properties{};
  properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  properties.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = ordinal};
  properties.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
  std::size_t granularity = 0;
  ROUSE_CUDA_RETURN_IF_ERROR(
      driver,
      cuMemGetAllocationGranularity(&granularity, &properties, CU_MEM_ALLOC_GRANULARITY_MINIMUM),
      what);
  device->granularity_ = granularity;
  return std::shared_ptr<const Device>(std::move(device));
}

Device::~Device() {
  if (context_ != nullptr) driver_.cuDevicePrimaryCtxRelease(handle_);
}

Result<std::uint64_t> Device::FreeBytes() const {
  const Current current(*this);
  std::size_t free = 0;
  std::size_t total = 0;
  ROUSE_CUDA_RETURN_IF_ERROR(driver_, cuMemGetInfo(&free, &total), "free memory of " + name_);
  return free;
}

bool Device::Reaches(const Device& other) const {
  if (ordinal_ == other.ordinal_) return true;
  int can = 0;
  return driver_.cuDeviceCanAccessPeer(&can, handle_, other.handle_) == CUDA_SUCCESS && can != 0;
}

Current::Current(const Device& device) : device_(device) {
  // Fails only for a context that is no more, and then every call after it says so.
  device_.driver().cuCtxPushCurrent(static_cast<CUcontext>(device_.context()));
}

Current::~Current() {
  CUcontext popped = nullptr;
  device_.driver().cuCtxPopCurrent(&popped);
}

Status Upload(const Device& device, std::byte* to, std::span<const std::byte> from) {
  const Current current(device);
  return ToStatus(device.driver(),
                  device.driver().cuMemcpyHtoD(Address(to), from.data(), from.size()),
                  "copy to " + device.name());
}

Status Download(const Device& device, std::span<std::byte> to, const std::byte* from) {
  const Current current(device);
  return ToStatus(device.driver(),
                  device.driver().cuMemcpyDtoH(to.data(), Address(from), to.size()),
                  "copy from " + device.name());
}

}  // namespace rouse::cuda
