#include "agent/memory/slab.h"

#include <fcntl.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <limits>

namespace rouse::memory {
namespace {

// From Linux 6.3; older headers lack it, older kernels refuse it with EINVAL.
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif

// FUTURE_WRITE, not WRITE: the agent keeps a writable mapping (see arena.h).
constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE;

class HostSlab final : public Slab {
 public:
  HostSlab(OwnedFd fd, std::uint64_t bytes) : Slab(std::move(fd), bytes) {}

  Status MapAt(std::byte* address) const override {
    void* mapped =
        ::mmap(address, bytes(), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd(), 0);
    if (mapped == MAP_FAILED) {
      return FromErrno(errno, "map a slab of " + std::to_string(bytes()) + " bytes");
    }
    return {};
  }

  Status Seal() override {
    const int present = ::fcntl(fd(), F_GET_SEALS);
    if (present >= 0 && (present & kSeals) == kSeals) return {};
    if (::fcntl(fd(), F_ADD_SEALS, kSeals | F_SEAL_SEAL) != 0)
      return FromErrno(errno, "seal a slab");
    return {};
  }
};

Result<OwnedFd> CreateMemfd(const std::string& name) {
  constexpr unsigned kFlags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
  int fd = ::memfd_create(name.c_str(), kFlags | MFD_NOEXEC_SEAL);
  if (fd < 0 && errno == EINVAL) fd = ::memfd_create(name.c_str(), kFlags);
  if (fd < 0) return FromErrno(errno, "create memfd " + name);
  return OwnedFd(fd);
}

}  // namespace

Result<OwnedFd> Slab::DuplicateFd() const {
  const int copy = ::fcntl(fd(), F_DUPFD_CLOEXEC, 0);
  if (copy < 0) return FromErrno(errno, "duplicate the descriptor of a slab");
  return OwnedFd(copy);
}

Result<std::unique_ptr<Slab>> CreateHostSlab(std::uint64_t bytes, const std::string& name) {
  if (bytes == 0 || bytes > static_cast<std::uint64_t>(std::numeric_limits<off_t>::max())) {
    return InvalidArgument("create a slab of " + std::to_string(bytes) + " bytes");
  }
  ROUSE_ASSIGN_OR_RETURN(OwnedFd fd, CreateMemfd(name));
  if (::ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) {
    return FromErrno(errno, "size slab " + name + " to " + std::to_string(bytes) + " bytes");
  }
  return std::unique_ptr<Slab>(std::make_unique<HostSlab>(std::move(fd), bytes));
}

}  // namespace rouse::memory
