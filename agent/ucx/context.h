// UCX, wrapped: the process's UCX context and the memory registered with it.
//
//   auto context = ucx::Context::Create({});
//   auto memory = ucx::RegisteredMemory::Register(*context, {address, bytes});
//   std::string rkey = *memory->PackKey();          // travels to the peer
//
// Lifetime: everything made from a Context shares ownership of it, so order of destruction does not
// matter. Threads: Context and RegisteredMemory may be used from any thread.

#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/result.h"

// UCX's opaque handles, so that its headers are needed only in agent/ucx/*.cpp.
struct ucp_context;
struct ucp_mem;

namespace rouse::ucx {

/// Version of the library that runs, "1.13.1".
std::string LibraryVersion();

/// What is decided outside of UCX. A variable that the user has set goes before each.
struct ContextOptions {
  /// Network devices to use and no other, "mlx5_0:1" or "eth0"; empty: all (UCX_NET_DEVICES).
  std::vector<std::string> net_devices;
  /// Devices that one read is spread over, at most; 0: as UCX decides (UCX_MAX_RMA_RAILS, which UCX
  /// knows from 1.15 on).
  std::size_t max_rails = 0;
};

class Context {
 public:
  /// Reads UCX_* variables of the environment, then sets what `options` say, and what Rouse needs
  /// (see context.cpp for each with its reason), unless the user has set it. Unavailable when UCX
  /// finds no usable device.
  static Result<std::shared_ptr<Context>> Create(const ContextOptions& options = {});
  ~Context();
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  ucp_context* handle() const { return handle_; }

 private:
  explicit Context(ucp_context* handle) : handle_(handle) {}

  ucp_context* handle_;
};

/// Keeps one range registered; unregisters it on destruction. Move-only. The bytes stay the
/// caller's, and must outlive this object.
class RegisteredMemory {
 public:
  /// Registers `range`, at most 4 GiB (kernels before 6.x wrap larger regions of device memory).
  /// InvalidArgument for an empty or larger range; Internal when UCX refuses, with its reason.
  static Result<RegisteredMemory> Register(std::shared_ptr<Context> context,
                                           std::span<std::byte> range);

  std::span<std::byte> range() const { return range_; }
  std::uint64_t address() const { return reinterpret_cast<std::uint64_t>(range_.data()); }
  ucp_mem* handle() const { return handle_.get(); }

  /// The key that lets a peer reach the whole range: raw bytes, opaque to everyone but UCX.
  Result<std::string> PackKey() const;

 private:
  struct Unregister {
    std::shared_ptr<Context> context;
    void operator()(ucp_mem* memory) const;
  };
  using Handle = std::unique_ptr<ucp_mem, Unregister>;

  RegisteredMemory(Handle handle, std::span<std::byte> range)
      : handle_(std::move(handle)), range_(range) {}

  Handle handle_;
  std::span<std::byte> range_;
};

}  // namespace rouse::ucx
