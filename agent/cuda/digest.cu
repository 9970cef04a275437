// XXH3-128 of blocks of 64 KiB, one block by four threads.
//
// From the specification of XXH3 (github.com/Cyan4973/xxHash, doc/xxhash_spec.md, "XXH3 algorithm
// for long inputs"): eight accumulators take 64 bytes a step; they depend on one another only in
// pairs, so each thread keeps two, and four threads read a step's 64 bytes side by side. The keys
// come from the host, which has them from the library that digests there.

#include <cstdint>

#include "agent/cuda/digest_kernel.h"

namespace {

constexpr std::uint64_t kPrime32_1 = 0x9E3779B1u;
constexpr std::uint64_t kPrime32_2 = 0x85EBCA77u;
constexpr std::uint64_t kPrime32_3 = 0xC2B2AE3Du;
constexpr std::uint64_t kPrime64_1 = 0x9E3779B185EBCA87ull;
constexpr std::uint64_t kPrime64_2 = 0xC2B2AE3D27D4EB4Full;
constexpr std::uint64_t kPrime64_3 = 0x165667B19E3779F9ull;
constexpr std::uint64_t kPrime64_4 = 0x85EBCA77C2B2AE63ull;
constexpr std::uint64_t kPrime64_5 = 0x27D4EB2F165667C5ull;

constexpr int kStepBytes = 64;
constexpr int kStepsBetweenScrambles = 16;
constexpr int kRounds = rouse::cuda::kKernelBlockBytes / (kStepBytes * kStepsBetweenScrambles);

struct Pair {
  std::uint64_t a, b;
};

__device__ Pair Initial(unsigned lane) {
  switch (lane) {
    case 0:
      return {kPrime32_3, kPrime64_1};
    case 1:
      return {kPrime64_2, kPrime64_3};
    case 2:
      return {kPrime64_4, kPrime32_2};
    default:
      return {kPrime64_5, kPrime32_1};
  }
}

__device__ std::uint64_t Product(std::uint64_t keyed) {
  return static_cast<std::uint64_t>(static_cast<std::uint32_t>(keyed)) * (keyed >> 32);
}

__device__ void Accumulate(Pair& acc, const ulonglong2& data, std::uint64_t key_a,
                           std::uint64_t key_b) {
  acc.a += data.y + Product(data.x ^ key_a);
  acc.b += data.x + Product(data.y ^ key_b);
}

__device__ std::uint64_t Scramble(std::uint64_t acc, std::uint64_t key) {
  return (acc ^ (acc >> 47) ^ key) * kPrime32_1;
}

__device__ std::uint64_t Fold(std::uint64_t a, std::uint64_t b) {
  return (a * b) ^ __umul64hi(a, b);
}

__device__ std::uint64_t SumOfFour(std::uint64_t value) {
  value += __shfl_xor_sync(~0u, value, 1);
  return value + __shfl_xor_sync(~0u, value, 2);
}

__device__ std::uint64_t Avalanche(std::uint64_t hash) {
  hash ^= hash >> 37;
  hash *= 0x165667919E3779F9ull;
  return hash ^ (hash >> 32);
}

__device__ std::uint64_t BigEndian(std::uint64_t value) {
  const auto low = static_cast<std::uint32_t>(value);
  const auto high = static_cast<std::uint32_t>(value >> 32);
  return static_cast<std::uint64_t>(__byte_perm(low, 0, 0x0123)) << 32 |
         __byte_perm(high, 0, 0x0123);
}

}  // namespace

// `out` gets 16 bytes a block, canonical form. Whole warps: blocks beyond `blocks` are computed
// from the last one and not written.
extern "C" __global__ void __launch_bounds__(rouse::cuda::kKernelThreads)
    rouse_digest_blocks(const unsigned char* base, std::uint64_t blocks, ulonglong2* out,
                        const rouse::cuda::DigestKeys keys) {
  const std::uint64_t thread = static_cast<std::uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const unsigned lane = threadIdx.x & 3;
  const std::uint64_t wanted = thread >> 2;
  const std::uint64_t block = wanted < blocks ? wanted : blocks - 1;
  const ulonglong2* data =
      reinterpret_cast<const ulonglong2*>(base + block * rouse::cuda::kKernelBlockBytes) + lane;

  std::uint64_t key[kStepsBetweenScrambles + 1];
#pragma unroll
  for (int i = 0; i <= kStepsBetweenScrambles; ++i) key[i] = keys.step[2 * lane + i];
  const std::uint64_t scramble_a = keys.step[16 + 2 * lane];
  const std::uint64_t scramble_b = keys.step[17 + 2 * lane];

  Pair acc = Initial(lane);
  for (int round = 0; round < kRounds; ++round) {
    ulonglong2 in[kStepsBetweenScrambles];
#pragma unroll
    for (int i = 0; i < kStepsBetweenScrambles; ++i) in[i] = __ldcs(data + 4 * i);
    data += 4 * kStepsBetweenScrambles;
#pragma unroll
    for (int i = 0; i < kStepsBetweenScrambles - 1; ++i) {
      Accumulate(acc, in[i], key[i], key[i + 1]);
    }
    if (round < kRounds - 1) {
      Accumulate(acc, in[kStepsBetweenScrambles - 1], key[kStepsBetweenScrambles - 1],
                 key[kStepsBetweenScrambles]);
      acc.a = Scramble(acc.a, scramble_a);
      acc.b = Scramble(acc.b, scramble_b);
    } else {
      // The last 64 bytes have keys of their own and no scramble after them.
      Accumulate(acc, in[kStepsBetweenScrambles - 1], keys.last[2 * lane], keys.last[2 * lane + 1]);
    }
  }
  const std::uint64_t length = rouse::cuda::kKernelBlockBytes;
  const std::uint64_t low =
      Avalanche(length * kPrime64_1 +
                SumOfFour(Fold(acc.a ^ keys.low[2 * lane], acc.b ^ keys.low[2 * lane + 1])));
  const std::uint64_t high =
      Avalanche(~(length * kPrime64_2) +
                SumOfFour(Fold(acc.a ^ keys.high[2 * lane], acc.b ^ keys.high[2 * lane + 1])));
  if (lane == 0 && wanted < blocks) out[wanted] = make_ulonglong2(BigEndian(high), BigEndian(low));
}
