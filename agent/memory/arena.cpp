#include "agent/memory/arena.h"

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <thread>

namespace rouse::memory {
namespace {

constexpr std::uint64_t kMaxSlabBytes = std::uint64_t{4} << 30;
constexpr std::uint64_t kMaxArenaBytes = std::uint64_t{1} << 44;  // 16 TiB, as in the manifest
constexpr std::uint64_t kPopulateStep = std::uint64_t{64} << 20;

std::uint64_t PageBytes() {
  return static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
}

std::uint64_t RoundUp(std::uint64_t bytes, std::uint64_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

Status Check(const ArenaOptions& options) {
  if (options.bytes == 0 || options.bytes > kMaxArenaBytes) {
    return InvalidArgument("create arena " + options.name + ": " + std::to_string(options.bytes) +
                           " bytes is not between 1 and " + std::to_string(kMaxArenaBytes));
  }
  if (options.slab_bytes == 0 || options.slab_bytes > kMaxSlabBytes ||
      options.slab_bytes % PageBytes() != 0) {
    return InvalidArgument("create arena " + options.name + ": slabs of " +
                           std::to_string(options.slab_bytes) +
                           " bytes; they must be a multiple of the page size, at most " +
                           std::to_string(kMaxSlabBytes));
  }
  return {};
}

// Takes the memory of [begin, begin + bytes). EINVAL from kernels before 5.14 means "cannot": the
// pages then come at first touch.
int PopulateRange(std::byte* begin, std::uint64_t bytes) {
#ifdef MADV_POPULATE_WRITE
  const int advice = MADV_POPULATE_WRITE;
#else
  const int advice = 23;
#endif
  if (::madvise(begin, bytes, advice) == 0 || errno == EINVAL) return 0;
  return errno;
}

}  // namespace

Arena::Arena(std::byte* base, std::uint64_t reserved, const ArenaOptions& options)
    : base_(base), reserved_(reserved), bytes_(options.bytes), slab_bytes_(options.slab_bytes) {}

Arena::~Arena() {
  ::munmap(base_, reserved_);
}

Result<std::unique_ptr<Arena>> Arena::Create(const ArenaOptions& options) {
  ROUSE_RETURN_IF_ERROR(Check(options));
  const std::uint64_t reserved = RoundUp(options.bytes, PageBytes());
  void* base =
      ::mmap(nullptr, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) {
    return FromErrno(errno,
                     "reserve " + std::to_string(reserved) + " bytes for arena " + options.name);
  }
  std::unique_ptr<Arena> arena(new Arena(static_cast<std::byte*>(base), reserved, options));
  ROUSE_RETURN_IF_ERROR(arena->AddSlabs(options).WithContext("create arena " + options.name));
  if (options.populate) {
    ROUSE_RETURN_IF_ERROR(
        arena->Populate(options.populate_threads).WithContext("create arena " + options.name));
  }
  return arena;
}

Status Arena::AddSlabs(const ArenaOptions& options) {
  for (std::uint64_t offset = 0; offset < bytes_; offset += slab_bytes_) {
    const std::uint64_t bytes = std::min(slab_bytes_, bytes_ - offset);
    ROUSE_ASSIGN_OR_RETURN(
        auto slab, CreateHostSlab(bytes, options.name + "." + std::to_string(slabs_.size())));
    ROUSE_RETURN_IF_ERROR(slab->MapAt(base_ + offset));
    slabs_.push_back(std::move(slab));
  }
  return {};
}

Status Arena::Populate(int threads) {
  std::atomic<std::uint64_t> next{0};
  std::atomic<int> error{0};
  const auto populate = [&] {
    ::pthread_setname_np(::pthread_self(), "arena-populate");
    for (;;) {
      const std::uint64_t offset = next.fetch_add(kPopulateStep);
      if (offset >= reserved_ || error.load() != 0) return;
      if (int e = PopulateRange(base_ + offset, std::min(kPopulateStep, reserved_ - offset));
          e != 0) {
        error.store(e);
      }
    }
  };
  {
    std::vector<std::jthread> pool;
    for (int i = 0; i < std::max(threads, 1); ++i) pool.emplace_back(populate);
  }
  if (error.load() == 0) return {};
  const std::string what = "take " + std::to_string(bytes_) + " bytes of memory";
  // EFAULT is how madvise reports that a page could not be had (out of shared memory).
  if (error.load() == EFAULT || error.load() == ENOMEM) {
    return Status(StatusCode::kResourceExhausted, what + ": not enough is free");
  }
  return FromErrno(error.load(), what);
}

std::vector<std::uint64_t> Arena::SlabBytes() const {
  std::vector<std::uint64_t> sizes;
  for (const auto& slab : slabs_) sizes.push_back(slab->bytes());
  return sizes;
}

std::span<std::byte> Arena::SlabSpan(std::size_t index) const {
  return {base_ + index * slab_bytes_, slabs_[index]->bytes()};
}

Status Arena::Seal() {
  for (const auto& slab : slabs_) ROUSE_RETURN_IF_ERROR(slab->Seal());
  sealed_ = true;
  return {};
}

}  // namespace rouse::memory
