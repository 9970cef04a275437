#include "agent/storage/safetensors.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "agent/storage/header_parser.h"

namespace rouse::storage {
namespace {

constexpr std::size_t kMaxShown = 200;
constexpr std::string_view kFileRemedy = "; fetch the file again or write the checkpoint anew";

constexpr Dtype kDtypes[] = {
    {"BOOL", 8, "bool"},
    {"F4", 4, "float4_e2m1fn_x2"},
    {"F6_E2M3", 6, ""},
    {"F6_E3M2", 6, ""},
    {"U8", 8, "uint8"},
    {"I8", 8, "int8"},
    {"F8_E5M2", 8, "float8_e5m2"},
    {"F8_E4M3", 8, "float8_e4m3fn"},
    {"F8_E8M0", 8, "float8_e8m0fnu"},
    {"F8_E4M3FNUZ", 8, "float8_e4m3fnuz"},
    {"F8_E5M2FNUZ", 8, "float8_e5m2fnuz"},
    {"I16", 16, "int16"},
    {"U16", 16, "uint16"},
    {"F16", 16, "float16"},
    {"BF16", 16, "bfloat16"},
    {"I32", 32, "int32"},
    {"U32", 32, "uint32"},
    {"F32", 32, "float32"},
    {"C64", 64, ""},
    {"F64", 64, "float64"},
    {"I64", 64, "int64"},
    {"U64", 64, ""},
};

std::string Offsets(const FileTensor& tensor) {
  return "data_offsets [" + std::to_string(tensor.begin) + ", " + std::to_string(tensor.end) + "]";
}

// "" when shape and dtype make exactly the bytes that data_offsets say.
std::string CheckSize(const FileTensor& tensor) {
  if (tensor.end < tensor.begin) return Offsets(tensor) + " end before they begin";
  std::uint64_t bits = tensor.dtype->bits;
  for (const std::uint64_t size : tensor.shape) {
    if (__builtin_mul_overflow(bits, size, &bits)) return "its shape has more than 2^64 bits";
  }
  if (bits % 8 != 0)
    return "its shape is no whole number of bytes of " + std::string(tensor.dtype->name);
  if (bits / 8 != tensor.end - tensor.begin) {
    return Offsets(tensor) + " span " + std::to_string(tensor.end - tensor.begin) +
           " bytes, dtype and shape make " + std::to_string(bits / 8);
  }
  return "";
}

// "" when the tensors, sorted, follow each other without overlap or hole.
std::string CheckPlace(const FileTensor& tensor, std::uint64_t free_from) {
  if (tensor.begin == free_from) return "";
  if (tensor.begin < free_from) {
    return Offsets(tensor) + " overlap the tensor before, which ends at " +
           std::to_string(free_from);
  }
  return Offsets(tensor) + " leave a hole after " + std::to_string(free_from) +
         ", which the format forbids";
}

Status CheckNames(const std::vector<FileTensor>& tensors, const std::string& what) {
  std::vector<std::string_view> names;
  names.reserve(tensors.size());
  for (const FileTensor& tensor : tensors) names.push_back(tensor.name);
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  if (twice == names.end()) return {};
  return InvalidArgument(what + "tensor " + Quoted(*twice) + " is there twice" +
                         std::string(kFileRemedy));
}

}  // namespace

std::string Quoted(std::string_view name) {
  return "\"" + std::string(name.substr(0, kMaxShown)) + (name.size() > kMaxShown ? "…" : "") +
         "\"";
}

const Dtype* FindDtype(std::string_view name) {
  const auto found =
      std::find_if(std::begin(kDtypes), std::end(kDtypes), [&](auto& d) { return d.name == name; });
  return found == std::end(kDtypes) ? nullptr : found;
}

Result<std::uint64_t> DecodeHeaderLength(std::span<const std::byte> first, std::uint64_t file_bytes,
                                         std::string_view file) {
  const std::string what = std::string(file) + ": ";
  if (first.size() < kHeaderLengthBytes || file_bytes < kHeaderLengthBytes) {
    return InvalidArgument(what + "has " + std::to_string(file_bytes) +
                           " bytes, too few for a safetensors file" + std::string(kFileRemedy));
  }
  std::uint64_t length = 0;
  for (std::size_t i = kHeaderLengthBytes; i-- > 0;) {
    length = length << 8 | std::to_integer<std::uint64_t>(first[i]);
  }
  if (length < 2 || length > kMaxHeaderBytes) {
    return InvalidArgument(what + "its header would have " + std::to_string(length) +
                           " bytes; a safetensors header has 2 to " +
                           std::to_string(kMaxHeaderBytes) + std::string(kFileRemedy));
  }
  if (length > file_bytes - kHeaderLengthBytes) {
    return InvalidArgument(what + "has " + std::to_string(file_bytes) +
                           " bytes and ends inside its header of " + std::to_string(length) +
                           std::string(kFileRemedy));
  }
  return length;
}

Result<ShardHeader> DecodeHeader(std::string_view text, std::uint64_t file_bytes,
                                 std::string_view file) {
  const std::string what = std::string(file) + ": ";
  if (text.size() > kMaxHeaderBytes || file_bytes < kHeaderLengthBytes ||
      text.size() > file_bytes - kHeaderLengthBytes) {
    return InvalidArgument(what + "a header of " + std::to_string(text.size()) +
                           " bytes does not fit");
  }
  if (!text.starts_with('{')) {
    return InvalidArgument(what + "the header does not begin with {" + std::string(kFileRemedy));
  }
  ParsedHeader parsed = ParseHeader(text);
  if (!parsed.problem.empty()) {
    return InvalidArgument(what + parsed.problem + std::string(kFileRemedy));
  }
  ShardHeader header{.data_offset = kHeaderLengthBytes + text.size(),
                     .data_bytes = file_bytes - kHeaderLengthBytes - text.size(),
                     .tensors = std::move(parsed.tensors)};
  ROUSE_RETURN_IF_ERROR(CheckNames(header.tensors, what));
  std::sort(header.tensors.begin(), header.tensors.end(),
            [](const FileTensor& a, const FileTensor& b) {
              return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
            });
  std::uint64_t end = 0;
  for (const FileTensor& tensor : header.tensors) {
    std::string problem = CheckSize(tensor);
    if (problem.empty()) problem = CheckPlace(tensor, end);
    if (!problem.empty()) {
      return InvalidArgument(what + "tensor " + Quoted(tensor.name) + ": " + problem +
                             std::string(kFileRemedy));
    }
    end = tensor.end;
  }
  if (end > header.data_bytes) {
    return InvalidArgument(
        what + "has " + std::to_string(file_bytes) + " bytes, its header describes " +
        std::to_string(end + header.data_offset) + "; tensor " +
        Quoted(header.tensors.back().name) + " is cut off" + std::string(kFileRemedy));
  }
  if (end < header.data_bytes) {
    return InvalidArgument(what + "its last " + std::to_string(header.data_bytes - end) +
                           " bytes belong to no tensor, which the format forbids" +
                           std::string(kFileRemedy));
  }
  return header;
}

}  // namespace rouse::storage
