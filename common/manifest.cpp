#include "common/manifest.h"

#include <array>
#include <limits>
#include <utility>

#include "common/sha256.h"

namespace rouse {
namespace {

constexpr std::size_t kMaxIdentityFields = 64;
constexpr std::size_t kMaxIdentityValue = 4096;
/// The field of an identity that only an engine with weight files has
/// (connector/rouse_vllm/identity.py): a side that lacks it is not different for that.
constexpr const char* kWeightFiles = "weightFiles";
constexpr std::size_t kMaxTensors = 1'000'000;
constexpr std::size_t kMaxDimensions = 16;
constexpr std::size_t kMaxName = 4096;
constexpr std::int64_t kMaxArenaBytes = std::int64_t{1} << 44;  // 16 TiB

constexpr std::array<std::pair<std::string_view, std::uint64_t>, 18> kDtypes = {{
    {"bool", 1},
    {"uint8", 1},
    {"int8", 1},
    {"float8_e4m3fn", 1},
    {"float8_e5m2", 1},
    {"float8_e4m3fnuz", 1},
    {"float8_e5m2fnuz", 1},
    {"float8_e8m0fnu", 1},
    {"float4_e2m1fn_x2", 1},
    {"int16", 2},
    {"uint16", 2},
    {"float16", 2},
    {"bfloat16", 2},
    {"int32", 4},
    {"uint32", 4},
    {"float32", 4},
    {"int64", 8},
    {"float64", 8},
}};

bool IsHex(std::string_view text) {
  return text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

// a * b + c, or nullopt when it does not fit.
std::optional<std::uint64_t> MultiplyAdd(std::uint64_t a, std::uint64_t b, std::uint64_t c) {
  std::uint64_t product = 0;
  std::uint64_t sum = 0;
  if (__builtin_mul_overflow(a, b, &product) || __builtin_add_overflow(product, c, &sum)) {
    return std::nullopt;
  }
  return sum;
}

// Bytes from the tensor's first to one past its last element; nullopt when it overflows.
std::optional<std::uint64_t> Extent(const Tensor& tensor) {
  std::uint64_t last = 0;
  for (std::size_t i = 0; i < tensor.shape.size(); ++i) {
    if (tensor.shape[i] == 0) return 0;
    const auto next = MultiplyAdd(static_cast<std::uint64_t>(tensor.shape[i] - 1),
                                  static_cast<std::uint64_t>(tensor.stride[i]), last);
    if (!next) return std::nullopt;
    last = *next;
  }
  return MultiplyAdd(last, DtypeBytes(tensor.dtype), DtypeBytes(tensor.dtype));
}

std::vector<std::int64_t> ReadIntegers(json::Reader& in, std::string_view key) {
  std::vector<std::int64_t> out;
  const json::Json& list = in.Array(key);
  if (list.size() > kMaxDimensions) {
    in.Fail(key, "has more than " + std::to_string(kMaxDimensions) + " dimensions");
    return out;
  }
  for (const json::Json& item : list) {
    if (!item.is_number_integer() || item.get<std::int64_t>() < 0) {
      in.Fail(key, "expected non-negative integers");
      return out;
    }
    out.push_back(item.get<std::int64_t>());
  }
  return out;
}

std::vector<Allocation> ReadAllocations(json::Reader& in, std::uint64_t arena_bytes) {
  std::uint64_t free_from = 0;
  return in.Objects("allocations", kMaxTensors, [&](json::Reader& entry) {
    const Allocation allocation{.offset = static_cast<std::uint64_t>(entry.Int("offset")),
                                .bytes = static_cast<std::uint64_t>(entry.Int("bytes"))};
    if (allocation.offset % kAllocationAlignment != 0) {
      entry.Fail("offset", "is not a multiple of " + std::to_string(kAllocationAlignment));
    } else if (allocation.offset < free_from) {
      entry.Fail("offset", "overlaps the allocation before it (they must be in order)");
    } else if (allocation.offset > arena_bytes ||
               allocation.bytes > arena_bytes - allocation.offset) {
      entry.Fail("bytes", "reaches past the end of the arena, " + std::to_string(arena_bytes));
    }
    free_from = allocation.offset + allocation.bytes;
    return allocation;
  });
}

std::vector<Tensor> ReadTensors(json::Reader& in, const std::vector<Allocation>& allocations) {
  return in.Objects("tensors", kMaxTensors, [&](json::Reader& entry) {
    Tensor tensor;
    tensor.name = entry.String("name");
    tensor.kind = entry.Enum<TensorKind>("kind", kTensorKinds);
    tensor.allocation = static_cast<std::uint32_t>(
        entry.Int("allocation", 0, std::numeric_limits<std::uint32_t>::max()));
    tensor.offset = static_cast<std::uint64_t>(entry.Int("offset"));
    tensor.shape = ReadIntegers(entry, "shape");
    tensor.stride = ReadIntegers(entry, "stride");
    tensor.dtype = entry.String("dtype");
    if (tensor.name.empty() || tensor.name.size() > kMaxName) {
      entry.Fail("name", "must have 1 to " + std::to_string(kMaxName) + " characters");
    } else if (tensor.allocation >= allocations.size()) {
      entry.Fail("allocation", "there is no allocation " + std::to_string(tensor.allocation));
    } else if (DtypeBytes(tensor.dtype) == 0) {
      entry.Fail("dtype", "unknown dtype \"" + tensor.dtype + "\"");
    } else if (tensor.shape.size() != tensor.stride.size()) {
      entry.Fail("stride", "has another number of dimensions than shape");
    } else if (entry.status().ok()) {
      const std::uint64_t room = allocations[tensor.allocation].bytes;
      const auto extent = Extent(tensor);
      if (!extent || tensor.offset > room || *extent > room - tensor.offset) {
        entry.Fail("shape", "reaches past the end of allocation " +
                                std::to_string(tensor.allocation) + ", " + std::to_string(room) +
                                " bytes");
      }
    }
    return tensor;
  });
}

std::vector<std::string> ReadDigests(json::Reader& in, const WeightManifest& manifest) {
  if (!in.Has("digest")) return {};
  json::Reader digest(in.Object("digest"), in.Path("digest"));
  if (digest.String("algorithm") != kDigestAlgorithm) {
    digest.Fail("algorithm", "expected \"" + std::string(kDigestAlgorithm) + "\"");
  }
  std::vector<std::string> chunks = digest.Strings("chunks");
  const std::uint64_t expected = ChunkCount(manifest.arena_bytes, manifest.chunk_bytes);
  if (chunks.size() != expected) {
    digest.Fail("chunks", "has " + std::to_string(chunks.size()) + " entries, expected " +
                              std::to_string(expected));
  }
  for (const std::string& chunk : chunks) {
    if (chunk.size() != 32 || !IsHex(chunk)) {
      digest.Fail("chunks", "expected 32 lower-case hex digits each");
      break;
    }
  }
  in.Take(digest.status());
  return chunks;
}

}  // namespace

json::Json ToJson(const Identity& identity) {
  return json::Json(identity);
}

Result<Identity> IdentityFromJson(const json::Json& value, const std::string& path) {
  if (!value.is_object()) return InvalidArgument(path + ": expected an object of strings");
  if (value.size() > kMaxIdentityFields) {
    return InvalidArgument(path + ": has more than " + std::to_string(kMaxIdentityFields) +
                           " fields");
  }
  Identity identity;
  for (const auto& [key, field] : value.items()) {
    if (!field.is_string() || field.get_ref<const std::string&>().size() > kMaxIdentityValue ||
        key.size() > kMaxIdentityValue) {
      return InvalidArgument(path + "." + key.substr(0, 64) + ": expected a string of at most " +
                             std::to_string(kMaxIdentityValue) + " bytes");
    }
    identity[key] = field.get<std::string>();
  }
  return identity;
}

std::string IdentityDigest(const Identity& identity) {
  return Sha256Hex(json::Canonical(ToJson(identity)));
}

std::vector<std::string> IdentityDifferences(const Identity& here, const Identity& there) {
  Identity all = here;
  all.insert(there.begin(), there.end());
  const auto show = [](const Identity& identity, const std::string& key) {
    const auto it = identity.find(key);
    return it == identity.end() ? std::string("missing") : "\"" + it->second + "\"";
  };
  std::vector<std::string> differences;
  for (const auto& [key, unused] : all) {
    if (key == kWeightFiles && (!here.contains(key) || !there.contains(key))) continue;
    if (show(here, key) != show(there, key)) {
      differences.push_back(key + ": " + show(here, key) + " here, " + show(there, key) + " there");
    }
  }
  return differences;
}

std::string_view ToString(WeightForm form) {
  return json::NameOf<WeightForm>(form, kWeightForms);
}

std::uint64_t DtypeBytes(std::string_view dtype) {
  for (const auto& [name, bytes] : kDtypes) {
    if (name == dtype) return bytes;
  }
  return 0;
}

std::uint64_t ChunkCount(std::uint64_t arena_bytes, std::uint64_t chunk_bytes) {
  return arena_bytes / chunk_bytes + (arena_bytes % chunk_bytes != 0 ? 1 : 0);
}

json::Json ToJson(const WeightManifest& manifest) {
  json::Json out = {{"protocol", kManifestProtocol},
                    {"version", kManifestVersion},
                    {"form", ToString(manifest.form)},
                    {"identity", ToJson(manifest.identity)},
                    {"rank", manifest.rank},
                    {"arenaBytes", manifest.arena_bytes},
                    {"chunkBytes", manifest.chunk_bytes},
                    {"allocations", json::Json::array()},
                    {"tensors", json::Json::array()},
                    {"scalars", manifest.scalars}};
  for (const Allocation& allocation : manifest.allocations) {
    out["allocations"].push_back({{"offset", allocation.offset}, {"bytes", allocation.bytes}});
  }
  for (const Tensor& tensor : manifest.tensors) {
    out["tensors"].push_back({{"name", tensor.name},
                              {"kind", json::NameOf<TensorKind>(tensor.kind, kTensorKinds)},
                              {"allocation", tensor.allocation},
                              {"offset", tensor.offset},
                              {"shape", tensor.shape},
                              {"stride", tensor.stride},
                              {"dtype", tensor.dtype}});
  }
  if (!manifest.chunk_digests.empty()) {
    out["digest"] = {{"algorithm", kDigestAlgorithm}, {"chunks", manifest.chunk_digests}};
  }
  return out;
}

Result<WeightManifest> ManifestFromJson(const json::Json& value, const std::string& path) {
  json::Reader in(value, path);
  const std::string protocol = in.String("protocol");
  const std::int64_t version = in.Int("version");
  ROUSE_RETURN_IF_ERROR(in.status());
  if (protocol != kManifestProtocol || version != kManifestVersion) {
    return FailedPrecondition(path + ": is " + protocol + " " + std::to_string(version) +
                              ", this program reads " + std::string(kManifestProtocol) + " " +
                              std::to_string(kManifestVersion));
  }
  WeightManifest manifest;
  manifest.form = in.Enum<WeightForm>("form", kWeightForms);
  auto identity = IdentityFromJson(in.Object("identity"), in.Path("identity"));
  in.Take(identity.status());
  manifest.rank = static_cast<std::uint32_t>(in.Int("rank", 0, 65535));
  manifest.arena_bytes = static_cast<std::uint64_t>(in.Int("arenaBytes", 1, kMaxArenaBytes));
  manifest.chunk_bytes = static_cast<std::uint64_t>(in.Int("chunkBytes", 4096, 1 << 30));
  ROUSE_RETURN_IF_ERROR(in.status());
  manifest.identity = *std::move(identity);
  manifest.allocations = ReadAllocations(in, manifest.arena_bytes);
  ROUSE_RETURN_IF_ERROR(in.status());
  manifest.tensors = ReadTensors(in, manifest.allocations);
  manifest.scalars = in.ObjectOrEmpty("scalars");
  for (const auto& [name, scalar] : manifest.scalars.items()) {
    if (!scalar.is_primitive()) in.Fail("scalars", name + ": expected a number, string or boolean");
  }
  manifest.chunk_digests = ReadDigests(in, manifest);
  ROUSE_RETURN_IF_ERROR(in.status());
  return manifest;
}

}  // namespace rouse
