// Host memory: slabs are memfds.

#include <fcntl.h>
#include <linux/memfd.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <limits>
#include <thread>
#include <vector>

#include "agent/memory/copy_engine.h"
#include "agent/memory/memory.h"

namespace rouse::memory {
namespace {

// From Linux 6.3; older headers lack it, older kernels refuse it with EINVAL.
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif

// FUTURE_WRITE, not WRITE: the agent keeps a writable mapping (see arena.h).
constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE;
constexpr std::uint64_t kPopulateStep = std::uint64_t{64} << 20;

class HostSlab final : public Slab {
 public:
  HostSlab(OwnedFd fd, std::uint64_t bytes, int protection)
      : Slab(std::move(fd), bytes), protection_(protection) {}

  Status MapAt(std::byte* address) const override {
    void* mapped = ::mmap(address, bytes(), protection_, MAP_SHARED | MAP_FIXED, fd(), 0);
    if (mapped == MAP_FAILED) {
      return FromErrno(errno, "map a slab of " + std::to_string(bytes()) + " bytes");
    }
    return {};
  }

  // HostMemory::Free takes the whole range away in one step, so that nobody else can be given a
  // part of it in between.
  void UnmapAt(std::byte*) const override {}

  Status Seal() override {
    const int present = ::fcntl(fd(), F_GET_SEALS);
    if (present >= 0 && (present & kSeals) == kSeals) return {};
    if (::fcntl(fd(), F_ADD_SEALS, kSeals | F_SEAL_SEAL) != 0)
      return FromErrno(errno, "seal a slab");
    return {};
  }

 private:
  const int protection_;
};

Result<OwnedFd> CreateMemfd(const std::string& name) {
  constexpr unsigned kFlags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
  int fd = ::memfd_create(name.c_str(), kFlags | MFD_NOEXEC_SEAL);
  if (fd < 0 && errno == EINVAL) fd = ::memfd_create(name.c_str(), kFlags);
  if (fd < 0) return FromErrno(errno, "create memfd " + name);
  return OwnedFd(fd);
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

class HostKind final : public Memory {
 public:
  std::string name() const override { return "host"; }
  bool on_host() const override { return true; }
  std::uint64_t granularity() const override {
    return static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  }

  Result<std::byte*> Reserve(std::uint64_t bytes) const override {
    void* base =
        ::mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) {
      return FromErrno(errno, "reserve " + std::to_string(bytes) + " bytes of addresses");
    }
    return static_cast<std::byte*>(base);
  }

  void Free(std::byte* base, std::uint64_t bytes) const override { ::munmap(base, bytes); }

  Result<std::unique_ptr<Slab>> Create(std::uint64_t bytes,
                                       const std::string& name) const override {
    if (bytes == 0 || bytes > static_cast<std::uint64_t>(std::numeric_limits<off_t>::max())) {
      return InvalidArgument("create a slab of " + std::to_string(bytes) + " bytes");
    }
    ROUSE_ASSIGN_OR_RETURN(OwnedFd fd, CreateMemfd(name));
    if (::ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) {
      return FromErrno(errno, "size slab " + name + " to " + std::to_string(bytes) + " bytes");
    }
    return std::unique_ptr<Slab>(
        std::make_unique<HostSlab>(std::move(fd), bytes, PROT_READ | PROT_WRITE));
  }

  Result<std::unique_ptr<Slab>> Import(OwnedFd fd, std::uint64_t bytes) const override {
    // One that could shrink under our mapping would kill us when we read it.
    const int seals = ::fcntl(fd.get(), F_GET_SEALS);
    if (seals < 0 || (seals & F_SEAL_SHRINK) == 0) {
      return InvalidArgument("the descriptor is not a memfd that is sealed against shrinking");
    }
    struct stat status {};
    if (::fstat(fd.get(), &status) != 0) return FromErrno(errno, "size of an imported slab");
    if (static_cast<std::uint64_t>(status.st_size) != bytes) {
      return InvalidArgument("the memfd has " + std::to_string(status.st_size) +
                             " bytes, expected " + std::to_string(bytes));
    }
    return std::unique_ptr<Slab>(std::make_unique<HostSlab>(std::move(fd), bytes, PROT_READ));
  }

  Status Populate(std::byte* base, std::uint64_t bytes, int threads) const override {
    std::atomic<std::uint64_t> next{0};
    std::atomic<int> error{0};
    const auto populate = [&] {
      ::pthread_setname_np(::pthread_self(), "arena-populate");
      for (;;) {
        const std::uint64_t offset = next.fetch_add(kPopulateStep);
        if (offset >= bytes || error.load() != 0) return;
        if (int e = PopulateRange(base + offset, std::min(kPopulateStep, bytes - offset)); e != 0) {
          error.store(e);
        }
      }
    };
    {
      std::vector<std::jthread> pool;
      for (int i = 0; i < std::max(threads, 1); ++i) pool.emplace_back(populate);
    }
    if (error.load() == 0) return {};
    const std::string what = "take " + std::to_string(bytes) + " bytes of memory";
    // EFAULT is how madvise reports that a page could not be had (out of shared memory).
    if (error.load() == EFAULT || error.load() == ENOMEM) {
      return Status(StatusCode::kResourceExhausted, what + ": not enough is free");
    }
    return FromErrno(error.load(), what);
  }

  Status CopyOut(const std::byte* from, std::span<std::byte> to) const override {
    std::memcpy(to.data(), from, to.size());
    return {};
  }
  Status CopyIn(std::span<const std::byte> from, std::byte* to) const override {
    std::memcpy(to, from.data(), from.size());
    return {};
  }
  Result<std::unique_ptr<Pin>> PinHost(std::span<std::byte>) const override {
    return std::unique_ptr<Pin>();
  }

  Result<std::unique_ptr<CopyEngine>> NewCopyEngine(int threads) const override {
    return HostCopyEngine(threads);
  }
};

}  // namespace

std::shared_ptr<const Memory> HostMemory() {
  static const auto memory = std::make_shared<const HostKind>();
  return memory;
}

}  // namespace rouse::memory
