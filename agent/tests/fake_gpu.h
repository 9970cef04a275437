// A GPU for tests: memory of the host that says it is a GPU's.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "agent/memory/chunk_digest.h"
#include "agent/memory/copy_engine.h"
#include "agent/memory/memory.h"

namespace rouse::testing {

inline constexpr std::uint64_t kMiB = 1u << 20;
inline const std::string kGpu = "GPU-fake";

/// Does with the CPU what a GPU's engine does, all in one piece.
class FakeGpuEngine final : public memory::CopyEngine {
 public:
  explicit FakeGpuEngine(std::function<void()> on_copy) : on_copy_(std::move(on_copy)) {}

  Status Copy(const memory::Arena& from, memory::Arena& to, const memory::CopyOptions& options,
              const memory::OnPiece& on_piece) override {
    if (on_copy_) on_copy_();
    std::memcpy(to.span().data(), from.span().data(), to.bytes());
    return Digest(to, options, on_piece);
  }
  Status Digest(const memory::Arena& arena, const memory::CopyOptions&,
                const memory::OnPiece& on_piece) override {
    std::vector<memory::BlockDigest> blocks;
    for (std::uint64_t at = 0; at < arena.bytes(); at += memory::kDigestBlockBytes) {
      blocks.push_back(memory::DigestBlock(
          arena.span().subspan(at, std::min(memory::kDigestBlockBytes, arena.bytes() - at))));
    }
    return on_piece({0, arena.bytes(), blocks});
  }

 private:
  const std::function<void()> on_copy_;
};

/// Memory that says it is a GPU's.
class FakeGpuMemory final : public memory::Memory {
 public:
  explicit FakeGpuMemory(std::string gpu = kGpu) : gpu_(std::move(gpu)) {}

  std::string name() const override { return "cuda:7"; }
  bool on_host() const override { return false; }
  std::string gpu() const override { return gpu_; }
  std::uint64_t granularity() const override { return 2 * kMiB; }
  Result<std::byte*> Reserve(std::uint64_t bytes) const override {
    return memory::HostMemory()->Reserve(bytes);
  }
  void Free(std::byte* base, std::uint64_t bytes) const override {
    memory::HostMemory()->Free(base, bytes);
  }
  Result<std::unique_ptr<memory::Slab>> Create(std::uint64_t bytes,
                                               const std::string& slab) const override {
    if (full) return Status(StatusCode::kResourceExhausted, "the GPU is full");
    ++created;
    return memory::HostMemory()->Create(bytes, slab);
  }
  Result<std::unique_ptr<memory::Slab>> Import(memory::OwnedFd fd,
                                               std::uint64_t bytes) const override {
    if (cannot_import) return Unavailable("no way from there");
    return memory::HostMemory()->Import(std::move(fd), bytes);
  }
  Status Populate(std::byte* base, std::uint64_t bytes, int threads) const override {
    return memory::HostMemory()->Populate(base, bytes, threads);
  }
  Result<std::unique_ptr<memory::CopyEngine>> NewCopyEngine(int) const override {
    return std::unique_ptr<memory::CopyEngine>(std::make_unique<FakeGpuEngine>(on_copy));
  }
  Status CopyOut(const std::byte* from, std::span<std::byte> to) const override {
    return memory::HostMemory()->CopyOut(from, to);
  }
  Status CopyIn(std::span<const std::byte> from, std::byte* to) const override {
    return memory::HostMemory()->CopyIn(from, to);
  }
  Result<std::unique_ptr<memory::Pin>> PinHost(std::span<std::byte> host) const override {
    return memory::HostMemory()->PinHost(host);
  }

  bool full = false;
  mutable std::atomic<int> created = 0;  ///< Slabs.
  bool cannot_import = false;
  std::function<void()> on_copy;  ///< Before each.

 private:
  const std::string gpu_;
};

class FakeGpus final : public memory::Gpus {
 public:
  explicit FakeGpus(const std::string& gpu = kGpu) : memory(std::make_shared<FakeGpuMemory>(gpu)) {}

  Status Check() override { return check; }
  Result<std::shared_ptr<const memory::Memory>> MemoryOf(const std::string& uuid) override {
    for (const auto& one : {memory, other}) {
      if (one != nullptr && one->gpu() == uuid) return std::shared_ptr<const memory::Memory>(one);
    }
    return NotFound("no such GPU");
  }

  Status check;
  const std::shared_ptr<FakeGpuMemory> memory;
  std::shared_ptr<FakeGpuMemory> other;  ///< A second one, if there is one.
};

}  // namespace rouse::testing
