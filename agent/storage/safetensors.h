// The header of a safetensors file: 8 bytes of length, then JSON that says where each tensor lies.
//
// Pure: bytes in, values out. A checkpoint is somebody else's file, so everything that a header
// says is checked before it is used: its length, that it is JSON with no name twice, known dtypes,
// that shapes fit offsets without overflow, and that the tensors cover the rest of the file without
// overlap or hole, as the format demands. An error names file, tensor and remedy.
//
//   ROUSE_ASSIGN_OR_RETURN(auto length, DecodeHeaderLength(first_bytes, file_bytes, file));
//   ... read `length` bytes at offset 8 ...
//   ROUSE_ASSIGN_OR_RETURN(ShardHeader header, DecodeHeader(text, file_bytes, file));

#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/result.h"

namespace rouse::storage {

inline constexpr std::uint64_t kHeaderLengthBytes = 8;
inline constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;  ///< The format's own limit.
inline constexpr std::size_t kMaxTensorName = 4096;    ///< Bytes, in headers and in the index.
inline constexpr std::size_t kMaxTensors = 1'000'000;  ///< As in a manifest.

struct Dtype {
  std::string_view name;   ///< As in the file: "BF16".
  std::uint32_t bits = 0;  ///< Of one element.
  std::string_view torch;  ///< As in a manifest: "bfloat16"; "" where a manifest has none.
};

/// Null when the format has no such dtype. The answer lives for ever.
const Dtype* FindDtype(std::string_view name);

struct FileTensor {
  std::string name;
  const Dtype* dtype = nullptr;      ///< Never null in a decoded header.
  std::vector<std::uint64_t> shape;  ///< Elements, each at most 2^53.
  std::uint64_t begin = 0;           ///< Bytes from the start of the data section.
  std::uint64_t end = 0;

  bool operator==(const FileTensor&) const = default;
};

struct ShardHeader {
  std::uint64_t data_offset = 0;    ///< Bytes from the start of the file.
  std::uint64_t data_bytes = 0;     ///< Up to the end of the file.
  std::vector<FileTensor> tensors;  ///< In the order of their bytes, which they cover.

  bool operator==(const ShardHeader&) const = default;
};

/// The header's length from the file's first bytes. InvalidArgument when there are fewer than 8 of
/// them, when it is over the limit, or when the file ends before the header does.
Result<std::uint64_t> DecodeHeaderLength(std::span<const std::byte> first, std::uint64_t file_bytes,
                                         std::string_view file);

/// The header from its JSON. `file_bytes` is the whole file's size. InvalidArgument.
Result<ShardHeader> DecodeHeader(std::string_view text, std::uint64_t file_bytes,
                                 std::string_view file);

/// A name from a file as messages show it: in quotes, cut when long.
std::string Quoted(std::string_view name);

}  // namespace rouse::storage
