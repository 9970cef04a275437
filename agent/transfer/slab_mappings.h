// Slabs as a process that serves them has them mapped, each found again by its file. Private to
// agent/transfer.
//
// RDMA devices register only memory that may be written (UCX asks for write access, always), and a
// sealed slab can no longer be mapped so. So slabs are mapped as soon as they exist, and kept.

#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>

#include "common/result.h"

namespace rouse::transfer {

/// What names the file behind a descriptor, as long as anybody has it open or mapped: "5:1234".
Result<std::string> SlabKey(int fd);

class SlabMappings {
 public:
  /// The slab behind `fd`, mapped once however often this is asked: writable unless it is sealed
  /// already.
  Result<std::span<std::byte>> Map(int fd, std::uint64_t bytes);
  void Unmap(const std::string& key) { mappings_.erase(key); }

 private:
  struct Free {
    std::uint64_t bytes = 0;
    void operator()(std::byte* address) const;
  };
  std::map<std::string, std::unique_ptr<std::byte, Free>> mappings_;
};

}  // namespace rouse::transfer
