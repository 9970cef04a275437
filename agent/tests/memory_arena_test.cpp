#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <cstring>
#include <numeric>

#include "agent/memory/arena.h"

namespace rouse::memory {
namespace {

constexpr std::uint64_t kMiB = 1u << 20;

std::uint64_t FileBytes(int fd) {
  struct stat info = {};
  REQUIRE(::fstat(fd, &info) == 0);
  return static_cast<std::uint64_t>(info.st_size);
}

std::unique_ptr<Arena> Make(std::uint64_t bytes, std::uint64_t slab_bytes, bool populate = false) {
  auto arena = Arena::Create(
      {.bytes = bytes, .slab_bytes = slab_bytes, .name = "test", .populate = populate});
  REQUIRE(arena.ok());
  return *std::move(arena);
}

TEST_CASE("an arena's slabs add up to its size, and only the last one is shorter", "[memory]") {
  const auto arena = Make(5 * kMiB + 123, 2 * kMiB);
  REQUIRE(arena->SlabBytes() == std::vector<std::uint64_t>{2 * kMiB, 2 * kMiB, kMiB + 123});
  REQUIRE(arena->span().size() == 5 * kMiB + 123);
  for (std::size_t i = 0; i < arena->slab_count(); ++i) {
    REQUIRE(FileBytes(arena->slab(i).fd()) == arena->SlabBytes()[i]);
  }
}

TEST_CASE("slabs lie one after the other in the arena's range", "[memory]") {
  const auto arena = Make(5 * kMiB, 2 * kMiB, true);
  for (std::size_t i = 0; i < arena->span().size(); ++i) {
    arena->span()[i] = static_cast<std::byte>(i * 2654435761u >> 24);
  }
  std::uint64_t offset = 0;
  for (std::size_t i = 0; i < arena->slab_count(); ++i) {
    const auto slab = arena->SlabSpan(i);
    REQUIRE(slab.data() == arena->span().data() + offset);
    std::vector<std::byte> read(slab.size());
    REQUIRE(::pread(arena->slab(i).fd(), read.data(), read.size(), 0) ==
            static_cast<ssize_t>(read.size()));
    REQUIRE(std::equal(read.begin(), read.end(), slab.begin()));
    offset += slab.size();
  }
}

TEST_CASE("what an engine writes through a slab's descriptor appears in the arena", "[memory]") {
  const auto arena = Make(2 * kMiB, kMiB);
  auto fd = arena->slab(1).DuplicateFd();
  REQUIRE(fd.ok());
  void* engine = ::mmap(nullptr, kMiB, PROT_READ | PROT_WRITE, MAP_SHARED, fd->get(), 0);
  REQUIRE(engine != MAP_FAILED);
  std::memset(engine, 0x5a, kMiB);
  ::munmap(engine, kMiB);
  REQUIRE(arena->span()[kMiB] == std::byte{0x5a});
  REQUIRE(arena->span()[2 * kMiB - 1] == std::byte{0x5a});
}

TEST_CASE("after sealing nobody can write to, resize or unseal a slab, but a private mapping works",
          "[memory]") {
  const auto arena = Make(kMiB, kMiB);
  arena->span()[7] = std::byte{7};
  REQUIRE(arena->Seal().ok());
  REQUIRE(arena->sealed());
  const int fd = arena->slab(0).fd();

  REQUIRE(::mmap(nullptr, kMiB, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED);
  REQUIRE(::pwrite(fd, "x", 1, 0) < 0);
  REQUIRE(::ftruncate(fd, 0) != 0);
  REQUIRE(::ftruncate(fd, 2 * kMiB) != 0);
  REQUIRE(::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) != 0);
  REQUIRE(::fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) != 0);

  auto* mine =
      static_cast<std::byte*>(::mmap(nullptr, kMiB, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0));
  REQUIRE(mine != MAP_FAILED);
  REQUIRE(mine[7] == std::byte{7});
  mine[7] = std::byte{8};
  REQUIRE(arena->span()[7] == std::byte{7});
  ::munmap(mine, kMiB);

  REQUIRE(arena->Seal().ok());  // twice is fine
}

TEST_CASE("an engine's mapping outlives the arena", "[memory]") {
  auto arena = Make(kMiB, kMiB);
  arena->span()[100] = std::byte{42};
  auto* engine =
      static_cast<std::byte*>(::mmap(nullptr, kMiB, PROT_READ, MAP_SHARED, arena->slab(0).fd(), 0));
  REQUIRE(engine != MAP_FAILED);
  arena.reset();
  REQUIRE(engine[100] == std::byte{42});
  ::munmap(engine, kMiB);
}

TEST_CASE("populating takes the memory at once", "[memory]") {
  const auto resident = [](const Arena& arena) {
    struct stat info = {};
    REQUIRE(::fstat(arena.slab(0).fd(), &info) == 0);
    return static_cast<std::uint64_t>(info.st_blocks) * 512;
  };
  REQUIRE(resident(*Make(8 * kMiB, 8 * kMiB, false)) == 0);
  REQUIRE(resident(*Make(8 * kMiB, 8 * kMiB, true)) == 8 * kMiB);
}

TEST_CASE("a prepared arena takes the memory of its slabs as they are made", "[memory]") {
  auto prepared = Arena::Prepare({.bytes = 5 * kMiB + 123, .slab_bytes = 2 * kMiB, .name = "test"});
  REQUIRE(prepared.ok());
  Arena& arena = **prepared;
  // It says what it will be.
  REQUIRE(arena.slab_count() == 3);
  REQUIRE(arena.SlabBytes() == std::vector<std::uint64_t>{2 * kMiB, 2 * kMiB, kMiB + 123});
  REQUIRE_FALSE(arena.whole());
  REQUIRE(arena.MakeSlabs(1).ok());
  REQUIRE(FileBytes(arena.slab(0).fd()) == 2 * kMiB);
  arena.span()[2 * kMiB - 1] = std::byte{1};
  const int first = arena.slab(0).fd();
  REQUIRE(arena.MakeSlabs(3).ok());
  REQUIRE(arena.MakeSlabs(9).ok());  // More than there are changes nothing.
  REQUIRE(arena.whole());
  REQUIRE(arena.slab(0).fd() == first);
  REQUIRE(arena.span()[2 * kMiB - 1] == std::byte{1});
  arena.span()[5 * kMiB + 122] = std::byte{2};
  REQUIRE(FileBytes(arena.slab(2).fd()) == kMiB + 123);
}

std::vector<OwnedFd> Descriptors(const Arena& arena) {
  std::vector<OwnedFd> fds;
  for (std::size_t i = 0; i < arena.slab_count(); ++i) {
    auto fd = arena.slab(i).DuplicateFd();
    REQUIRE(fd.ok());
    fds.push_back(*std::move(fd));
  }
  return fds;
}

TEST_CASE("an imported arena shows what its owner wrote, and outlives it", "[memory]") {
  auto arena = Make(5 * kMiB + 123, 2 * kMiB);
  for (std::size_t i = 0; i < arena->span().size(); ++i) {
    arena->span()[i] = static_cast<std::byte>(i * 2654435761u >> 24);
  }
  REQUIRE(arena->Seal().ok());
  const std::vector<std::byte> before(arena->span().begin(), arena->span().end());
  auto imported =
      Arena::Import({.bytes = arena->bytes(), .slab_bytes = 2 * kMiB}, Descriptors(*arena));
  REQUIRE(imported.ok());
  arena.reset();
  const auto span = std::as_const(**imported).span();
  REQUIRE(std::equal(span.begin(), span.end(), before.begin(), before.end()));
}

TEST_CASE("descriptors that cannot be a peer's slabs are refused", "[memory]") {
  const ArenaOptions options{.bytes = 3 * kMiB, .slab_bytes = 2 * kMiB};
  const auto error = [&](std::vector<OwnedFd> fds) {
    const auto imported = Arena::Import(options, std::move(fds));
    REQUIRE_FALSE(imported.ok());
    REQUIRE(imported.status().code() == StatusCode::kInvalidArgument);
    return imported.status().message();
  };
  const auto unsealed = Make(3 * kMiB, 2 * kMiB);
  REQUIRE_THAT(error(Descriptors(*unsealed)),
               Catch::Contains("slab 0") && Catch::Contains("sealed against shrinking"));

  const auto other = Make(4 * kMiB, 2 * kMiB);
  REQUIRE(other->Seal().ok());
  REQUIRE_THAT(error(Descriptors(*other)),
               Catch::Contains("slab 1") && Catch::Contains("has 2097152 bytes, expected 1048576"));

  std::vector<OwnedFd> one;
  one.push_back(std::move(Descriptors(*other)[0]));
  REQUIRE_THAT(error(std::move(one)), Catch::Contains("1 slabs, expected 2"));

  std::vector<OwnedFd> pipe_ends;
  int ends[2];
  REQUIRE(::pipe(ends) == 0);
  pipe_ends.emplace_back(ends[0]);
  pipe_ends.emplace_back(ends[1]);
  REQUIRE_THAT(error(std::move(pipe_ends)), Catch::Contains("not a memfd"));
}

TEST_CASE("sizes that make no sense are refused with what is wrong", "[memory]") {
  const auto error = [](ArenaOptions options) {
    options.name = "weights";
    const auto arena = Arena::Create(options);
    REQUIRE_FALSE(arena.ok());
    REQUIRE(arena.status().code() == StatusCode::kInvalidArgument);
    return arena.status().message();
  };
  REQUIRE_THAT(error({.bytes = 0}), Catch::Contains("weights") && Catch::Contains("0 bytes"));
  REQUIRE_THAT(error({.bytes = std::uint64_t{1} << 50}), Catch::Contains("not between"));
  REQUIRE_THAT(error({.bytes = kMiB, .slab_bytes = 0}), Catch::Contains("multiple of 4096"));
  REQUIRE_THAT(error({.bytes = kMiB, .slab_bytes = 4097}), Catch::Contains("multiple of 4096"));
  REQUIRE_THAT(error({.bytes = kMiB, .slab_bytes = std::uint64_t{5} << 30}),
               Catch::Contains("at most"));
}

}  // namespace
}  // namespace rouse::memory
