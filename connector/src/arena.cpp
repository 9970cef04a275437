// Address ranges that slabs are mapped into.

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <new>
#include <utility>

#include "connector/src/driver.h"
#include "connector/src/error.h"
#include "connector/src/rouse_connector.h"

struct rouse_arena {
  char* address;  ///< The range is ours until rouse_arena_free.
  size_t bytes;   ///< A multiple of the page size.
  const rouse::connector::Driver* pinned_by = nullptr;  ///< Null: it is not pinned.
};

namespace rouse::connector {
namespace {

// Huge pages can only be used where file offset and address agree modulo their size.
constexpr size_t kAlignment = size_t{2} << 20;

size_t PageBytes() {
  return static_cast<size_t>(sysconf(_SC_PAGESIZE));
}

/// Reserves `bytes` at a multiple of kAlignment: takes more and gives the ends back.
void* ReserveAligned(size_t bytes) {
  size_t taken = bytes + kAlignment;
  void* raw = mmap(nullptr, taken, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (raw == MAP_FAILED) return raw;
  char* begin = static_cast<char*>(raw);
  size_t head =
      RoundUp(reinterpret_cast<uintptr_t>(begin), kAlignment) - reinterpret_cast<uintptr_t>(begin);
  if (head > 0) munmap(begin, head);
  if (size_t tail = taken - head - bytes; tail > 0) munmap(begin + head + bytes, tail);
  return begin + head;
}

/// Before anything is unmapped: the driver would go on with pages that are somebody else's then.
void Unpin(rouse_arena* arena) {
  if (const Driver* const driver = std::exchange(arena->pinned_by, nullptr)) {
    driver->mem_host_unregister(arena->address);
  }
}

}  // namespace
}  // namespace rouse::connector

using rouse::connector::CudaStatus;
using rouse::connector::Driver;
using rouse::connector::Fail;
using rouse::connector::PageBytes;
using rouse::connector::RoundUp;

int rouse_arena_reserve(size_t bytes, void* at, rouse_arena** arena) {
  if (arena == nullptr) return Fail(EINVAL, "rouse_arena_reserve needs a place for the arena");
  *arena = nullptr;
  if (bytes == 0 || bytes > rouse::connector::kMaxArenaBytes) {
    return Fail(EINVAL, "an arena of %zu bytes cannot be reserved", bytes);
  }
  if (reinterpret_cast<uintptr_t>(at) % PageBytes() != 0) {
    return Fail(EINVAL, "the address %p is not at a page boundary", at);
  }
  size_t rounded = RoundUp(bytes, PageBytes());
  void* address =
      at == nullptr
          ? rouse::connector::ReserveAligned(rounded)
          : mmap(at, rounded, PROT_NONE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
  if (address == MAP_FAILED)
    return Fail(errno, "cannot reserve %zu bytes of addresses at %p", rounded, at);
  if (at != nullptr && address != at) {  // A kernel that does not know MAP_FIXED_NOREPLACE.
    munmap(address, rounded);
    return Fail(EEXIST, "cannot reserve %zu bytes of addresses at %p", rounded, at);
  }
  *arena = new (std::nothrow) rouse_arena{static_cast<char*>(address), rounded};
  if (*arena == nullptr) {
    munmap(address, rounded);
    return Fail(ENOMEM, "cannot reserve an arena");
  }
  return 0;
}

void* rouse_arena_address(const rouse_arena* arena) {
  return arena->address;
}

int rouse_arena_map(rouse_arena* arena, size_t offset, size_t bytes, int fd,
                    enum rouse_mapping mapping) {
  if (mapping != ROUSE_MAP_SHARED && mapping != ROUSE_MAP_PRIVATE && mapping != ROUSE_MAP_READ) {
    return Fail(EINVAL, "unknown kind of mapping %d", static_cast<int>(mapping));
  }
  if (bytes == 0 || offset % PageBytes() != 0 || offset > arena->bytes ||
      bytes > arena->bytes - offset) {
    return Fail(EINVAL,
                "a slab of %zu bytes cannot be mapped at offset %zu of an arena of %zu bytes",
                bytes, offset, arena->bytes);
  }
  struct stat info {};
  if (fstat(fd, &info) < 0) return Fail(errno, "cannot look at the slab in descriptor %d", fd);
  if (!S_ISREG(info.st_mode) || static_cast<size_t>(info.st_size) < bytes) {
    return Fail(EINVAL, "the slab in descriptor %d has %lld bytes, %zu were announced", fd,
                static_cast<long long>(info.st_size), bytes);
  }
  int flags = mapping == ROUSE_MAP_PRIVATE ? MAP_PRIVATE | MAP_NORESERVE : MAP_SHARED;
  int protection = mapping == ROUSE_MAP_READ ? PROT_READ : PROT_READ | PROT_WRITE;
  void* mapped = mmap(arena->address + offset, bytes, protection, flags | MAP_FIXED, fd, 0);
  if (mapped == MAP_FAILED) {
    return Fail(errno, "cannot map a slab of %zu bytes at offset %zu of the arena", bytes, offset);
  }
  return 0;
}

int rouse_arena_pin(rouse_arena* arena) {
  if (arena->pinned_by != nullptr) return Fail(EINVAL, "the arena is pinned already");
  const Driver* const driver = rouse::connector::GetDriver();
  if (driver == nullptr) return -ENODEV;
  // Read-only, as the mapping is: a driver that wanted to write there would be refused its pages.
  const int result = CudaStatus(
      *driver,
      driver->mem_host_register(arena->address, arena->bytes, CU_MEMHOSTREGISTER_READ_ONLY),
      "pin an arena in host memory");
  if (result == 0) arena->pinned_by = driver;
  return result;
}

int rouse_arena_unmap(rouse_arena* arena) {
  rouse::connector::Unpin(arena);
  // Mapping nothing over it in one step: no other thread can take the range in between.
  void* mapped = mmap(arena->address, arena->bytes, PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  if (mapped == MAP_FAILED) return Fail(errno, "cannot unmap an arena of %zu bytes", arena->bytes);
  return 0;
}

void rouse_arena_free(rouse_arena* arena) {
  if (arena == nullptr) return;
  rouse::connector::Unpin(arena);
  munmap(arena->address, arena->bytes);
  delete arena;
}
