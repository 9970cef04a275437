#include "agent/cuda/block_digester.h"

// The library's secret is a static table of its implementation.
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <array>
#include <cstring>

#include "agent/memory/chunk_digest.h"

// Made by nvcc from digest.cu (CMakeLists.txt).
extern "C" const unsigned char rouse_digest_fatbin[];

namespace rouse::cuda {
namespace {

static_assert(kKernelBlockBytes == memory::kDigestBlockBytes);
static_assert(sizeof(XXH3_kSecret) == 192);

template <std::size_t n>
void Read(std::uint64_t (&words)[n], std::size_t offset) {
  std::memcpy(words, XXH3_kSecret + offset, sizeof words);
}

DigestKeys Keys() {
  DigestKeys keys{};
  Read(keys.step, 0);
  Read(keys.last, 121);
  Read(keys.low, 11);
  Read(keys.high, 117);
  return keys;
}

}  // namespace

BlockDigester::BlockDigester(const Driver& driver, Module module, CUfunction function)
    : driver_(&driver), module_(std::move(module)), function_(function), keys_(Keys()) {}

Result<BlockDigester> BlockDigester::Create(const Driver& driver) {
  CUmodule loaded = nullptr;
  ROUSE_CUDA_RETURN_IF_ERROR(driver, cuModuleLoadData(&loaded, rouse_digest_fatbin),
                             "load the digest kernel");
  Module module(driver, loaded);
  CUfunction function = nullptr;
  ROUSE_CUDA_RETURN_IF_ERROR(driver, cuModuleGetFunction(&function, loaded, "rouse_digest_blocks"),
                             "find the digest kernel");
  return BlockDigester(driver, std::move(module), function);
}

Status BlockDigester::Launch(CUdeviceptr data, std::uint64_t blocks, CUdeviceptr out,
                             CUstream stream) const {
  if (blocks == 0) return {};
  const std::uint64_t threads = blocks * kThreadsForBlock;
  const auto grid = static_cast<unsigned>((threads + kKernelThreads - 1) / kKernelThreads);
  DigestKeys keys = keys_;
  std::array<void*, 4> arguments = {&data, &blocks, &out, &keys};
  return ToStatus(*driver_,
                  driver_->cuLaunchKernel(function_, grid, 1, 1, kKernelThreads, 1, 1, 0, stream,
                                          arguments.data(), nullptr),
                  "launch the digest kernel");
}

}  // namespace rouse::cuda
