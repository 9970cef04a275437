// The C library over a real GPU: slabs as an agent makes them, mapped as an engine does. Part of
// rouse-gpu-test; compute-sanitizer's memcheck is run over it.

#include <catch2/catch.hpp>
#include <cstring>
#include <vector>

#include "agent/cuda/device.h"
#include "agent/memory/arena.h"
#include "agent/tests/transfer_fixture.h"
#include "connector/src/rouse_connector.h"

namespace rouse {
namespace {

constexpr std::size_t kSlab = std::size_t{64} << 20;

std::vector<std::byte> Pattern(std::size_t bytes, unsigned seed) {
  std::vector<std::byte> out(bytes);
  for (std::size_t i = 0; i < bytes; ++i) out[i] = static_cast<std::byte>((i * 31 + seed) >> 3);
  return out;
}

std::unique_ptr<memory::Arena> Slabs(const std::shared_ptr<const cuda::Device>& device,
                                     std::size_t bytes) {
  return transfer::Must(memory::Arena::Create({.bytes = bytes,
                                               .memory = cuda::DeviceMemory(device),
                                               .slab_bytes = kSlab,
                                               .name = "library"}));
}

void Map(rouse_gpu_arena* arena, const memory::Arena& slabs, rouse_gpu_access access) {
  std::size_t offset = 0;
  for (std::size_t i = 0; i < slabs.slab_count(); ++i) {
    const std::size_t bytes = slabs.slab(i).bytes();
    INFO(rouse_last_error());
    REQUIRE(rouse_gpu_arena_map(arena, offset, bytes, slabs.slab(i).fd(), access) == 0);
    offset += bytes;
  }
}

std::vector<std::byte> Read(const cuda::Device& device, std::uint64_t address, std::size_t bytes) {
  std::vector<std::byte> out(bytes);
  transfer::Must(cuda::Download(device, out, reinterpret_cast<const std::byte*>(address)));
  return out;
}

}  // namespace

TEST_CASE("an engine's arena on a GPU: filled, protected, given back, and mapped again", "[gpu]") {
  const auto device = transfer::Must(cuda::Device::Open(0));
  const cuda::Current current(*device);
  constexpr std::size_t kBytes = kSlab * 3;
  const auto first = Pattern(kBytes, 1);
  rouse_gpu_arena* arena = nullptr;
  REQUIRE(rouse_gpu_arena_reserve(kBytes, 0, &arena) == 0);
  const std::uint64_t address = rouse_gpu_arena_address(arena);
  auto slabs = Slabs(device, kBytes);
  Map(arena, *slabs, ROUSE_GPU_READ_WRITE);
  transfer::Must(cuda::Upload(*device, reinterpret_cast<std::byte*>(address), first));
  REQUIRE(rouse_gpu_arena_protect(arena) == 0);
  CHECK(Read(*device, address, kBytes) == first);
  // What the engine wrote is what the agent has.
  CHECK(Read(*device, reinterpret_cast<std::uint64_t>(slabs->span().data()), kBytes) == first);
  CHECK(rouse_gpu_arena_map(arena, kSlab, kSlab, slabs->slab(1).fd(), ROUSE_GPU_READ) == -EEXIST);
  CHECK(rouse_gpu_arena_map(arena, 1, kSlab, slabs->slab(0).fd(), ROUSE_GPU_READ) == -EINVAL);

  // Asleep: neither holds the memory.
  const std::uint64_t held = transfer::Must(device->FreeBytes());
  REQUIRE(rouse_gpu_arena_unmap(arena) == 0);
  slabs.reset();
  CHECK(transfer::Must(device->FreeBytes()) >= held + kBytes);

  // Awake: other slabs, other bytes, the same addresses; filled by the agent after they are mapped.
  auto fresh = Slabs(device, kBytes);
  Map(arena, *fresh, ROUSE_GPU_READ);
  CHECK(rouse_gpu_arena_address(arena) == address);
  const auto second = Pattern(kBytes, 2);
  transfer::Must(cuda::Upload(*device, fresh->span().data(), second));
  CHECK(Read(*device, address, kBytes) == second);
  rouse_gpu_arena_free(arena);
}

TEST_CASE("an engine's pool on a GPU is given back and comes back zeroed where it was", "[gpu]") {
  const auto device = transfer::Must(cuda::Device::Open(0));
  const cuda::Current current(*device);
  constexpr std::size_t kBytes = std::size_t{512} << 20;
  void* const first = rouse_gpu_pool_allocate(kBytes, 0, nullptr);
  void* const second = rouse_gpu_pool_allocate(12345, 0, nullptr);
  REQUIRE(first != nullptr);
  REQUIRE(second != nullptr);
  const auto pattern = Pattern(4096, 3);
  transfer::Must(cuda::Upload(*device, static_cast<std::byte*>(first), pattern));
  const std::uint64_t held = transfer::Must(device->FreeBytes());
  REQUIRE(rouse_gpu_pool_release() == 0);
  CHECK(transfer::Must(device->FreeBytes()) >= held + kBytes);
  CHECK(rouse_gpu_pool_allocate(1, 0, nullptr) == nullptr);
  REQUIRE(rouse_gpu_pool_restore() == 0);
  const auto back = Read(*device, reinterpret_cast<std::uint64_t>(first), 4096);
  CHECK(back == std::vector<std::byte>(4096));
  rouse_gpu_pool_free(second, 12345, 0, nullptr);
  rouse_gpu_pool_free(first, kBytes, 0, nullptr);
  CHECK(rouse_gpu_pool_bytes() == 0);
}

TEST_CASE("large tensors that stand in for weights share their memory on a GPU", "[gpu]") {
  const auto device = transfer::Must(cuda::Device::Open(0));
  const cuda::Current current(*device);
  constexpr std::size_t kBytes = std::size_t{2} << 30;
  const std::uint64_t held = transfer::Must(device->FreeBytes());
  std::vector<void*> large;
  for (int i = 0; i < 8; ++i) {
    large.push_back(rouse_gpu_stand_in_allocate(kBytes, 0, nullptr));
    REQUIRE(large.back() != nullptr);
    CHECK(rouse_gpu_stand_in_holds(reinterpret_cast<std::uint64_t>(large.back()) + kBytes - 1) ==
          1);
  }
  CHECK(rouse_gpu_stand_in_bytes() == 8 * kBytes);
  CHECK(transfer::Must(device->FreeBytes()) + kBytes > held);
  const auto pattern = Pattern(1 << 20, 4);
  transfer::Must(
      cuda::Upload(*device, static_cast<std::byte*>(large[7]) + kBytes - pattern.size(), pattern));
  for (void* address : large) rouse_gpu_stand_in_free(address, kBytes, 0, nullptr);
  CHECK(rouse_gpu_stand_in_bytes() == 0);

  std::size_t before = 0;
  REQUIRE(rouse_gpu_set_stack(512, &before) == 0);
  std::size_t now = 0;
  REQUIRE(rouse_gpu_set_stack(before, &now) == 0);
  CHECK(now >= 512);
}

}  // namespace rouse
