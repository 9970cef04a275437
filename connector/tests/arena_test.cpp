#include <fcntl.h>

#include <cerrno>
#include <cstdint>
#include <memory>

#include "connector/src/driver.h"
#include "connector/src/rouse_connector.h"
#include "connector/tests/support.h"

using namespace rouse::connector_test;
using Catch::Matchers::Contains;

namespace {

constexpr size_t kSlab = 64 * 1024;

struct Free {
  void operator()(rouse_arena* arena) const { rouse_arena_free(arena); }
};
using Arena = std::unique_ptr<rouse_arena, Free>;

Arena Reserve(size_t bytes, void* at = nullptr) {
  rouse_arena* arena = nullptr;
  REQUIRE(rouse_arena_reserve(bytes, at, &arena) == 0);
  return Arena(arena);
}

char* Address(const Arena& arena) {
  return static_cast<char*>(rouse_arena_address(arena.get()));
}

/// Whether the kernel would let somebody else have this page (nothing is mapped there).
bool IsFree(void* address) {
  rouse_arena* arena = nullptr;
  bool free = rouse_arena_reserve(4096, address, &arena) == 0;
  rouse_arena_free(arena);
  return free;
}

}  // namespace

TEST_CASE("Slabs form one contiguous range, and shared writes reach them", "[connector]") {
  NoDescriptorLeak no_leak;
  Fd first(MakeSlab(kSlab)), second(MakeSlab(kSlab / 2));
  Arena arena = Reserve(kSlab + kSlab / 2);
  CHECK(reinterpret_cast<uintptr_t>(Address(arena)) % (2 << 20) == 0);
  REQUIRE(rouse_arena_map(arena.get(), 0, kSlab, first.get(), ROUSE_MAP_SHARED) == 0);
  REQUIRE(rouse_arena_map(arena.get(), kSlab, kSlab / 2, second.get(), ROUSE_MAP_SHARED) == 0);
  std::memset(Address(arena), 'w', kSlab + kSlab / 2);
  CHECK(ByteAt(first.get(), kSlab - 1) == 'w');
  CHECK(ByteAt(second.get(), 0) == 'w');
}

TEST_CASE("Writes to a private mapping stay away from the slab, and its content is seen",
          "[connector]") {
  Fd slab(MakeSlab(kSlab, 'p'));
  Arena arena = Reserve(kSlab);
  REQUIRE(rouse_arena_map(arena.get(), 0, kSlab, slab.get(), ROUSE_MAP_PRIVATE) == 0);
  CHECK(Address(arena)[kSlab - 1] == 'p');
  Address(arena)[0] = 'x';
  CHECK(Address(arena)[0] == 'x');
  CHECK(ByteAt(slab.get(), 0) == 'p');
}

TEST_CASE("A sealed slab can be mapped privately and no longer shared", "[connector]") {
  Fd slab(MakeSlab(kSlab, 'p'));
  REQUIRE(fcntl(slab.get(), F_ADD_SEALS, F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK | F_SEAL_GROW) == 0);
  Arena arena = Reserve(kSlab);
  CHECK(rouse_arena_map(arena.get(), 0, kSlab, slab.get(), ROUSE_MAP_SHARED) == -EPERM);
  REQUIRE(rouse_arena_map(arena.get(), 0, kSlab, slab.get(), ROUSE_MAP_PRIVATE) == 0);
  Address(arena)[0] = 'x';
  CHECK(ByteAt(slab.get(), 0) == 'p');
}

TEST_CASE("A mapping to read shows what others write to the slab, though it is sealed",
          "[connector]") {
  Fd slab(MakeSlab(kSlab, 'p'));
  void* const writable = mmap(nullptr, kSlab, PROT_READ | PROT_WRITE, MAP_SHARED, slab.get(), 0);
  REQUIRE(writable != MAP_FAILED);
  REQUIRE(fcntl(slab.get(), F_ADD_SEALS, F_SEAL_FUTURE_WRITE) == 0);
  Arena arena = Reserve(kSlab);
  REQUIRE(rouse_arena_map(arena.get(), 0, kSlab, slab.get(), ROUSE_MAP_READ) == 0);
  CHECK(Address(arena)[1] == 'p');
  static_cast<char*>(writable)[1] = 'q';
  CHECK(Address(arena)[1] == 'q');
  munmap(writable, kSlab);
}

TEST_CASE("A range is pinned once, to be read, for as long as its slabs are mapped",
          "[connector]") {
  rouse::connector::driver_library = rouse::kFakeCuda;
  Fd slab(MakeSlab(kSlab, 'p'));
  Arena arena = Reserve(kSlab);
  REQUIRE(rouse_arena_map(arena.get(), 0, kSlab, slab.get(), ROUSE_MAP_READ) == 0);
  REQUIRE(rouse_arena_pin(arena.get()) == 0);
  auto& registered = OfFakeCuda<void*>("rouse_fake_cuda_registered");
  CHECK(registered == Address(arena));
  CHECK(OfFakeCuda<unsigned>("rouse_fake_cuda_register_flags") == CU_MEMHOSTREGISTER_READ_ONLY);
  CHECK(rouse_arena_pin(arena.get()) == -EINVAL);
  SECTION("unmapped") {
    REQUIRE(rouse_arena_unmap(arena.get()) == 0);
    CHECK(registered == nullptr);
    REQUIRE(rouse_arena_map(arena.get(), 0, kSlab, slab.get(), ROUSE_MAP_READ) == 0);
    CHECK(rouse_arena_pin(arena.get()) == 0);
  }
  SECTION("freed") {
    arena.reset();
    CHECK(registered == nullptr);
  }
}

TEST_CASE("A range that the driver does not pin is as it was", "[connector]") {
  rouse::connector::driver_library = rouse::kFakeCuda;
  Fd slab(MakeSlab(kSlab, 'p'));
  Arena first = Reserve(kSlab), second = Reserve(kSlab);
  for (const Arena* arena : {&first, &second}) {
    REQUIRE(rouse_arena_map(arena->get(), 0, kSlab, slab.get(), ROUSE_MAP_READ) == 0);
  }
  REQUIRE(rouse_arena_pin(first.get()) == 0);
  CHECK(rouse_arena_pin(second.get()) == -EIO);  // The stand-in pins one at a time.
  CHECK_THAT(rouse_last_error(), Contains("cannot pin an arena in host memory"));
  CHECK(Address(second)[0] == 'p');
  second.reset();
  CHECK(OfFakeCuda<void*>("rouse_fake_cuda_registered") == Address(first));
}

TEST_CASE("What was written shared is there when the range is mapped privately again",
          "[connector]") {
  Fd slab(MakeSlab(kSlab));
  Arena arena = Reserve(kSlab);
  char* address = Address(arena);
  REQUIRE(rouse_arena_map(arena.get(), 0, kSlab, slab.get(), ROUSE_MAP_SHARED) == 0);
  address[7] = 's';
  REQUIRE(rouse_arena_unmap(arena.get()) == 0);
  CHECK_FALSE(IsFree(address));
  REQUIRE(rouse_arena_map(arena.get(), 0, kSlab, slab.get(), ROUSE_MAP_PRIVATE) == 0);
  CHECK(Address(arena) == address);
  CHECK(address[7] == 's');
}

TEST_CASE("A mapping outlives the descriptor", "[connector]") {
  Arena arena = Reserve(kSlab);
  {
    Fd slab(MakeSlab(kSlab, 'd'));
    REQUIRE(rouse_arena_map(arena.get(), 0, kSlab, slab.get(), ROUSE_MAP_PRIVATE) == 0);
  }
  CHECK(Address(arena)[100] == 'd');
}

TEST_CASE("A range can be reserved at an address of choice, and freed ranges are given back",
          "[connector]") {
  Arena probe = Reserve(kSlab);
  void* address = rouse_arena_address(probe.get());
  rouse_arena* taken = nullptr;
  CHECK(rouse_arena_reserve(kSlab, address, &taken) == -EEXIST);
  CHECK(taken == nullptr);
  probe.reset();
  CHECK(IsFree(address));
  Arena again = Reserve(kSlab, address);
  CHECK(rouse_arena_address(again.get()) == address);
}

TEST_CASE("A slab that is shorter than announced or no file at all is refused", "[connector]") {
  NoDescriptorLeak no_leak;
  Arena arena = Reserve(4 * kSlab);
  Fd slab(MakeSlab(kSlab));
  CHECK(rouse_arena_map(arena.get(), 0, kSlab + 1, slab.get(), ROUSE_MAP_PRIVATE) == -EINVAL);
  CHECK_THAT(rouse_last_error(), Contains("65536 bytes, 65537 were announced"));
  Pair pair;
  CHECK(rouse_arena_map(arena.get(), 0, kSlab, pair.ours(), ROUSE_MAP_PRIVATE) == -EINVAL);
  CHECK(rouse_arena_map(arena.get(), 0, kSlab, -1, ROUSE_MAP_PRIVATE) == -EBADF);
}

TEST_CASE("Nothing is mapped outside of the range or off a page boundary", "[connector]") {
  Arena arena = Reserve(2 * kSlab);
  Fd slab(MakeSlab(4 * kSlab));
  CHECK(rouse_arena_map(arena.get(), 0, 3 * kSlab, slab.get(), ROUSE_MAP_PRIVATE) == -EINVAL);
  CHECK(rouse_arena_map(arena.get(), kSlab, 2 * kSlab, slab.get(), ROUSE_MAP_PRIVATE) == -EINVAL);
  CHECK(rouse_arena_map(arena.get(), SIZE_MAX - 4095, kSlab, slab.get(), ROUSE_MAP_PRIVATE) ==
        -EINVAL);
  CHECK(rouse_arena_map(arena.get(), 100, kSlab, slab.get(), ROUSE_MAP_PRIVATE) == -EINVAL);
  CHECK(rouse_arena_map(arena.get(), 0, 0, slab.get(), ROUSE_MAP_PRIVATE) == -EINVAL);
  CHECK(rouse_arena_map(arena.get(), 0, kSlab, slab.get(), static_cast<rouse_mapping>(4)) ==
        -EINVAL);
}

TEST_CASE("Arenas of impossible sizes are refused", "[connector]") {
  rouse_arena* arena = nullptr;
  CHECK(rouse_arena_reserve(0, nullptr, &arena) == -EINVAL);
  CHECK(rouse_arena_reserve(SIZE_MAX, nullptr, &arena) == -EINVAL);
  CHECK(rouse_arena_reserve(kSlab, reinterpret_cast<void*>(12345), &arena) == -EINVAL);
  CHECK(arena == nullptr);
}
