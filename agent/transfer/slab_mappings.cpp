#include "agent/transfer/slab_mappings.h"

#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>

namespace rouse::transfer {

Result<std::string> SlabKey(int fd) {
  struct stat file = {};
  if (::fstat(fd, &file) != 0) return FromErrno(errno, "stat a slab");
  return std::to_string(file.st_dev) + ":" + std::to_string(file.st_ino);
}

void SlabMappings::Free::operator()(std::byte* address) const {
  ::munmap(address, bytes);
}

Result<std::span<std::byte>> SlabMappings::Map(int fd, std::uint64_t bytes) {
  ROUSE_ASSIGN_OR_RETURN(const std::string key, SlabKey(fd));
  if (const auto known = mappings_.find(key); known != mappings_.end()) {
    if (known->second.get_deleter().bytes != bytes) {
      return InvalidArgument("a slab of " + std::to_string(known->second.get_deleter().bytes) +
                             " bytes was said to have " + std::to_string(bytes));
    }
    return std::span(known->second.get(), bytes);
  }
  void* address = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (address == MAP_FAILED && errno == EPERM) {
    address = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, fd, 0);
  }
  if (address == MAP_FAILED) {
    return FromErrno(errno, "map a slab of " + std::to_string(bytes) + " bytes");
  }
  const auto base = static_cast<std::byte*>(address);
  mappings_.emplace(key, std::unique_ptr<std::byte, Free>(base, Free{bytes}));
  return std::span(base, bytes);
}

}  // namespace rouse::transfer
