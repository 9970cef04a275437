// GPU memory: slabs are allocations of the driver's virtual memory management.

#include "agent/cuda/copy_engine.h"
#include "agent/cuda/device.h"
#include "agent/cuda/driver.h"
#include "common/round_up.h"

namespace rouse::cuda {
namespace {

using memory::OwnedFd;
using memory::Slab;

class DeviceSlab final : public Slab {
 public:
  DeviceSlab(std::shared_ptr<const Device> device, CUmemGenericAllocationHandle handle, OwnedFd fd,
             std::uint64_t bytes, CUmemAccess_flags access)
      : Slab(std::move(fd), bytes),
        device_(std::move(device)),
        handle_(handle),
        mapped_bytes_(RoundUp(bytes, device_->granularity())),
        access_(access) {}

  // The physical memory lives on while a mapping or a descriptor of it does, ours or another's.
  ~DeviceSlab() override { device_->driver().cuMemRelease(handle_); }

  Status MapAt(std::byte* address) const override {
    const Driver& driver = device_->driver();
    const std::string what =
        "map a slab of " + std::to_string(mapped_bytes_) + " bytes of " + device_->name();
    ROUSE_CUDA_RETURN_IF_ERROR(driver, cuMemMap(Address(address), mapped_bytes_, 0, handle_, 0),
                               what);
    CUmemAccessDesc access{};
    access.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device_->ordinal()};
    access.flags = access_;
    const Status status =
        ToStatus(driver, driver.cuMemSetAccess(Address(address), mapped_bytes_, &access, 1), what);
    if (!status.ok()) driver.cuMemUnmap(Address(address), mapped_bytes_);
    return status;
  }

  void UnmapAt(std::byte* address) const override {
    device_->driver().cuMemUnmap(Address(address), mapped_bytes_);
  }

  Status Seal() override { return {}; }

 private:
  const std::shared_ptr<const Device> device_;
  const CUmemGenericAllocationHandle handle_;
  const std::uint64_t mapped_bytes_;
  const CUmemAccess_flags access_;
};

class HostPin final : public memory::Pin {
 public:
  HostPin(std::shared_ptr<const Device> device, std::byte* begin)
      : device_(std::move(device)), begin_(begin) {}
  ~HostPin() override {
    const Current current(*device_);
    device_->driver().cuMemHostUnregister(begin_);
  }

 private:
  const std::shared_ptr<const Device> device_;
  std::byte* const begin_;
};

class GpuMemory final : public memory::Memory {
 public:
  explicit GpuMemory(std::shared_ptr<const Device> device) : device_(std::move(device)) {}

  std::string name() const override { return "cuda:" + std::to_string(device_->ordinal()); }
  bool on_host() const override { return false; }
  std::string gpu() const override { return device_->uuid(); }
  std::uint64_t granularity() const override { return device_->granularity(); }

  Result<std::byte*> Reserve(std::uint64_t bytes) const override {
    CUdeviceptr base = 0;
    ROUSE_CUDA_RETURN_IF_ERROR(device_->driver(), cuMemAddressReserve(&base, bytes, 0, 0, 0),
                               "reserve " + std::to_string(bytes) + " bytes of GPU addresses");
    return reinterpret_cast<std::byte*>(base);
  }

  void Free(std::byte* base, std::uint64_t bytes) const override {
    device_->driver().cuMemAddressFree(Address(base), bytes);
  }

  Result<std::unique_ptr<Slab>> Create(std::uint64_t bytes,
                                       const std::string& slab_name) const override {
    if (bytes == 0) return InvalidArgument("create a slab of 0 bytes");
    const Driver& driver = device_->driver();
    const std::string what = "create slab " + slab_name + " of " + std::to_string(bytes) +
                             " bytes on " + device_->name();
    CUmemAllocationProp properties{};
    properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device_->ordinal()};
    properties.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    properties.allocFlags.gpuDirectRDMACapable = device_->rdma() ? 1 : 0;
    CUmemGenericAllocationHandle handle = 0;
    ROUSE_CUDA_RETURN_IF_ERROR(
        driver, cuMemCreate(&handle, RoundUp(bytes, device_->granularity()), &properties, 0), what);
    int fd = -1;
    const Status exported = ToStatus(driver,
                                     driver.cuMemExportToShareableHandle(
                                         &fd, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0),
                                     what);
    if (!exported.ok()) {
      driver.cuMemRelease(handle);
      return exported;
    }
    return std::unique_ptr<Slab>(std::make_unique<DeviceSlab>(device_, handle, OwnedFd(fd), bytes,
                                                              CU_MEM_ACCESS_FLAGS_PROT_READWRITE));
  }

  Result<std::unique_ptr<Slab>> Import(OwnedFd fd, std::uint64_t bytes) const override {
    CUmemGenericAllocationHandle handle = 0;
    // The driver checks what the descriptor is; its size shows when it is mapped.
    ROUSE_CUDA_RETURN_IF_ERROR(
        device_->driver(),
        cuMemImportFromShareableHandle(
            &handle, reinterpret_cast<void*>(static_cast<std::intptr_t>(fd.get())),
            CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR),
        "import a slab on " + device_->name());
    return std::unique_ptr<Slab>(std::make_unique<DeviceSlab>(device_, handle, std::move(fd), bytes,
                                                              CU_MEM_ACCESS_FLAGS_PROT_READ));
  }

  // cuMemCreate has taken it.
  Status Populate(std::byte*, std::uint64_t, int) const override { return {}; }

  Status CopyOut(const std::byte* from, std::span<std::byte> to) const override {
    return Download(*device_, to, from);
  }
  Status CopyIn(std::span<const std::byte> from, std::byte* to) const override {
    return Upload(*device_, to, from);
  }
  Result<std::unique_ptr<memory::Pin>> PinHost(std::span<std::byte> host) const override {
    const Current current(*device_);
    // For the node's other GPUs too: a lease's buffers serve all ranks.
    ROUSE_CUDA_RETURN_IF_ERROR(
        device_->driver(), cuMemHostRegister(host.data(), host.size(), CU_MEMHOSTREGISTER_PORTABLE),
        "pin " + std::to_string(host.size()) + " bytes of host memory");
    return std::unique_ptr<memory::Pin>(std::make_unique<HostPin>(device_, host.data()));
  }

  Result<std::unique_ptr<memory::CopyEngine>> NewCopyEngine(int) const override {
    return DeviceCopyEngine(device_);
  }

 private:
  const std::shared_ptr<const Device> device_;
};

}  // namespace

std::shared_ptr<const memory::Memory> DeviceMemory(std::shared_ptr<const Device> device) {
  return std::make_shared<const GpuMemory>(std::move(device));
}

}  // namespace rouse::cuda
