// What an arena contains: allocations, tensors, host scalars, and a digest of every chunk.
//
// docs/protocols.md §4. Decoding checks everything that can be checked without the arena: bounds,
// order and alignment of allocations, that each tensor lies inside its allocation, digest count.

#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "common/json.h"

namespace rouse {

/// The fields that make two ranks' bytes interchangeable; the digest is over canonical JSON.
using Identity = std::map<std::string, std::string>;

json::Json ToJson(const Identity& identity);
/// Strict: an object of strings, at most 64 of at most 4 KiB each.
Result<Identity> IdentityFromJson(const json::Json& value, const std::string& path);
/// 64 hex digits.
std::string IdentityDigest(const Identity& identity);
/// One line for each field that differs: `dtype: "bfloat16" here, "float16" there`. Empty if equal.
std::vector<std::string> IdentityDifferences(const Identity& here, const Identity& there);

/// Whether tensors are as the loader left them, or as weight post-processing left them.
enum class WeightForm { kLoaded, kProcessed };
inline constexpr json::EnumName<WeightForm> kWeightForms[] = {
    {WeightForm::kLoaded, "Loaded"}, {WeightForm::kProcessed, "Processed"}};
std::string_view ToString(WeightForm form);

enum class TensorKind { kParameter, kBuffer, kAttribute, kKernel };
inline constexpr json::EnumName<TensorKind> kTensorKinds[] = {{TensorKind::kParameter, "Parameter"},
                                                              {TensorKind::kBuffer, "Buffer"},
                                                              {TensorKind::kAttribute, "Attribute"},
                                                              {TensorKind::kKernel, "Kernel"}};

struct Allocation {
  std::uint64_t offset = 0;  ///< Bytes from the start of the arena, a multiple of 512.
  std::uint64_t bytes = 0;

  bool operator==(const Allocation&) const = default;
};

struct Tensor {
  std::string name;
  TensorKind kind = TensorKind::kParameter;
  std::uint32_t allocation = 0;      ///< Index into WeightManifest::allocations.
  std::uint64_t offset = 0;          ///< Bytes from the start of the allocation.
  std::vector<std::int64_t> shape;   ///< Elements.
  std::vector<std::int64_t> stride;  ///< Elements, none negative.
  std::string dtype;                 ///< torch's name without "torch.": "bfloat16".

  bool operator==(const Tensor&) const = default;
};

inline constexpr std::string_view kManifestProtocol = "rouse-manifest";
inline constexpr int kManifestVersion = 1;
/// The most ranks an instance may have.
inline constexpr std::size_t kMaxWorldSize = 1024;
inline constexpr std::uint64_t kChunkBytes = 4u << 20;
inline constexpr std::uint64_t kAllocationAlignment = 512;
/// XXH3-128 of each 64 KiB of a chunk, then XXH3-128 of those (agent/memory/chunk_digest.h).
inline constexpr std::string_view kDigestAlgorithm = "xxh3-128/64KiB";

struct WeightManifest {
  WeightForm form = WeightForm::kLoaded;
  Identity identity;
  std::uint32_t rank = 0;
  std::uint64_t arena_bytes = 0;
  std::uint64_t chunk_bytes = kChunkBytes;
  std::vector<Allocation> allocations;
  std::vector<Tensor> tensors;
  json::Json scalars = json::Json::object();  ///< Names to numbers, strings or booleans.
  /// One digest a chunk, 32 hex digits each; empty when not taken yet.
  std::vector<std::string> chunk_digests;

  bool operator==(const WeightManifest&) const = default;
};

/// Bytes of one element of `dtype`; 0 when unknown.
std::uint64_t DtypeBytes(std::string_view dtype);

/// Number of chunks that cover `arena_bytes`.
std::uint64_t ChunkCount(std::uint64_t arena_bytes, std::uint64_t chunk_bytes);

json::Json ToJson(const WeightManifest& manifest);
Result<WeightManifest> ManifestFromJson(const json::Json& value, const std::string& path);

}  // namespace rouse
