// A GPU, and its memory as slabs.
//
//   auto device = Device::Open(0);
//   auto arena = memory::Arena::Create({.bytes = n, .memory = DeviceMemory(*device)});
//
// Threads: any. What needs the device's primary context makes it current for its own duration and
// leaves the thread's as it was, so that a caller need not know of contexts.

#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "agent/memory/memory.h"
#include "common/result.h"

namespace rouse::cuda {

struct Driver;

/// GPUs that this process sees. Unavailable, with the reason, where there is no driver or none.
Result<int> DeviceCount();

/// The UUID of one of them, as Device::uuid; makes no context.
Result<std::string> DeviceUuid(int ordinal);

/// What models of GPUs this process sees ("NVIDIA H200"); none without a driver. Makes no context.
std::vector<std::string> DeviceNames();

/// One GPU, its primary context held for as long as this object lives (it costs about 0.3 s and
/// some hundred MB of the GPU's memory).
class Device {
 public:
  static Result<std::shared_ptr<const Device>> Open(int ordinal);
  /// The one with this UUID. NotFound when this process does not see it.
  static Result<std::shared_ptr<const Device>> Open(const std::string& uuid);
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  int ordinal() const { return ordinal_; }
  const std::string& name() const { return name_; }  ///< "NVIDIA H200"
  const std::string& uuid() const { return uuid_; }  ///< "GPU-6f0c..." as nvidia-smi prints it
  const std::string& pci() const { return pci_; }    ///< "0000:18:00.0"
  /// Whether NICs can reach slabs of this device (GPUDirect RDMA).
  bool rdma() const { return rdma_; }
  int multiprocessors() const { return multiprocessors_; }
  /// Slabs are mapped in multiples of this, 2 MiB on all GPUs so far.
  std::uint64_t granularity() const { return granularity_; }

  Result<std::uint64_t> FreeBytes() const;
  /// Whether this device can copy from and to `other` without passing through the host.
  bool Reaches(const Device& other) const;

  const Driver& driver() const { return driver_; }
  void* context() const { return context_; }

 private:
  Device(const Driver& driver, int ordinal) : driver_(driver), ordinal_(ordinal) {}

  const Driver& driver_;
  const int ordinal_;
  int handle_ = 0;
  void* context_ = nullptr;
  std::string name_;
  std::string uuid_;
  std::string pci_;
  bool rdma_ = false;
  int multiprocessors_ = 0;
  std::uint64_t granularity_ = 0;
};

/// Makes a device's context current on this thread while it lives.
class Current {
 public:
  explicit Current(const Device& device);
  ~Current();
  Current(const Current&) = delete;
  Current& operator=(const Current&) = delete;

 private:
  const Device& device_;
};

/// The device's memory: slabs by cuMemCreate, exported as POSIX file descriptors, reachable for
/// NICs where the device can do that. Imported slabs may be another device's that this one reaches.
std::shared_ptr<const memory::Memory> DeviceMemory(std::shared_ptr<const Device> device);

/// Copies from host memory to the device and back; blocking. For what is small or rare.
Status Upload(const Device& device, std::byte* to, std::span<const std::byte> from);
Status Download(const Device& device, std::span<std::byte> to, const std::byte* from);

}  // namespace rouse::cuda
