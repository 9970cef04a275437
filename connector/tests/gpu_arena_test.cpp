// GPU arenas, over a stand-in for libcuda whose memory can be looked at.

#include <cerrno>
#include <cstdio>
#include <memory>

#include "connector/src/driver.h"
#include "connector/src/rouse_connector.h"
#include "connector/tests/support.h"

using namespace rouse::connector_test;
using Catch::Matchers::Contains;

namespace {

struct FreeGpuArena {
  void operator()(rouse_gpu_arena* arena) const { rouse_gpu_arena_free(arena); }
};
using GpuArena = std::unique_ptr<rouse_gpu_arena, FreeGpuArena>;

GpuArena ReserveGpu(size_t bytes, uint64_t at = 0) {
  rouse::connector::driver_library = rouse::kFakeCuda;
  rouse_gpu_arena* arena = nullptr;
  REQUIRE(rouse_gpu_arena_reserve(bytes, at, &arena) == 0);
  return GpuArena(arena);
}

char* Address(const GpuArena& arena) {
  return reinterpret_cast<char*>(rouse_gpu_arena_address(arena.get()));
}

/// "rw-s" and the like, of the mapping that begins at `address`; empty when none does.
std::string PermissionsAt(const void* address) {
  std::unique_ptr<FILE, int (*)(FILE*)> maps(fopen("/proc/self/maps", "r"), &fclose);
  char line[512];
  char permissions[8];
  unsigned long begin = 0;
  while (fgets(line, sizeof(line), maps.get()) != nullptr) {
    if (sscanf(line, "%lx-%*x %7s", &begin, permissions) == 2 &&
        begin == reinterpret_cast<unsigned long>(address)) {
      return permissions;
    }
  }
  return "";
}

}  // namespace

TEST_CASE("GPU slabs form one range, and what is written there reaches them", "[connector]") {
  NoDescriptorLeak no_leak;
  Fd first(MakeSlab(kGranule)), second(MakeSlab(kGranule, 'o'));
  GpuArena arena = ReserveGpu(kGranule + 100);
  REQUIRE(rouse_gpu_arena_map(arena.get(), 0, kGranule, first.get(), ROUSE_GPU_READ_WRITE) == 0);
  // The last slab is cut to what is left, and takes a whole granule.
  REQUIRE(rouse_gpu_arena_map(arena.get(), kGranule, 100, second.get(), ROUSE_GPU_READ_WRITE) == 0);
  CHECK(Address(arena)[kGranule] == 'o');
  std::memset(Address(arena), 'w', kGranule + 100);
  CHECK(ByteAt(first.get(), kGranule - 1) == 'w');
  CHECK(ByteAt(second.get(), 99) == 'w');
}

TEST_CASE("A protected GPU arena can be read and no longer be written", "[connector]") {
  Fd slab(MakeSlab(kGranule));
  GpuArena arena = ReserveGpu(kGranule);
  REQUIRE(rouse_gpu_arena_map(arena.get(), 0, kGranule, slab.get(), ROUSE_GPU_READ_WRITE) == 0);
  CHECK(PermissionsAt(Address(arena)) == "rw-s");
  Address(arena)[5] = 'p';
  REQUIRE(rouse_gpu_arena_protect(arena.get()) == 0);
  CHECK(PermissionsAt(Address(arena)) == "r--s");
  CHECK(Address(arena)[5] == 'p');
}

TEST_CASE("GPU slabs that were unmapped come back at the same addresses", "[connector]") {
  NoDescriptorLeak no_leak;
  Fd slab(MakeSlab(kGranule, 'a')), other(MakeSlab(kGranule, 'b'));
  GpuArena arena = ReserveGpu(2 * kGranule);
  REQUIRE(rouse_gpu_arena_map(arena.get(), kGranule, kGranule, slab.get(), ROUSE_GPU_READ) == 0);
  char* const address = Address(arena) + kGranule;
  CHECK(PermissionsAt(address) == "r--s");
  CHECK(*address == 'a');
  REQUIRE(rouse_gpu_arena_unmap(arena.get()) == 0);
  CHECK(PermissionsAt(address).substr(0, 3) != "r--");
  REQUIRE(rouse_gpu_arena_map(arena.get(), kGranule, kGranule, other.get(), ROUSE_GPU_READ) == 0);
  CHECK(*address == 'b');
}

TEST_CASE("What does not fit a GPU arena is refused, and leaves nothing behind", "[connector]") {
  NoDescriptorLeak no_leak;
  GpuArena arena = ReserveGpu(2 * kGranule);
  Fd slab(MakeSlab(kGranule));
  const auto map = [&](size_t offset, size_t bytes, int fd, int access = ROUSE_GPU_READ) {
    return rouse_gpu_arena_map(arena.get(), offset, bytes, fd,
                               static_cast<rouse_gpu_access>(access));
  };
  CHECK(map(100, 100, slab.get()) == -EINVAL);
  CHECK(map(0, 0, slab.get()) == -EINVAL);
  CHECK(map(kGranule, kGranule + 1, slab.get()) == -EINVAL);
  CHECK(map(SIZE_MAX - kGranule + 1, 100, slab.get()) == -EINVAL);
  CHECK(map(0, 100, slab.get(), 3) == -EINVAL);
  CHECK(map(0, 100, -1) == -EINVAL);
  CHECK_THAT(rouse_last_error(), Contains("import") && Contains("CUDA_ERROR_INVALID_VALUE"));
  CHECK(map(0, 2 * kGranule, slab.get()) == -EINVAL);
  CHECK_THAT(rouse_last_error(), Contains("as large as announced"));
  REQUIRE(map(0, kGranule, slab.get()) == 0);
  CHECK(map(0, 100, slab.get()) == -EEXIST);
  rouse_gpu_arena* none = nullptr;
  CHECK(rouse_gpu_arena_reserve(0, 0, &none) == -EINVAL);
  CHECK(rouse_gpu_arena_reserve(SIZE_MAX, 0, &none) == -EINVAL);
  CHECK(none == nullptr);
  rouse_gpu_arena_free(nullptr);
}

TEST_CASE("A range of GPU addresses can be had again, and not twice", "[connector]") {
  uint64_t address = 0;
  {
    GpuArena arena = ReserveGpu(kGranule);
    address = rouse_gpu_arena_address(arena.get());
    rouse_gpu_arena* taken = nullptr;
    CHECK(rouse_gpu_arena_reserve(kGranule, address, &taken) == -EEXIST);
    CHECK(taken == nullptr);
  }
  GpuArena again = ReserveGpu(kGranule, address);
  CHECK(rouse_gpu_arena_address(again.get()) == address);
}
