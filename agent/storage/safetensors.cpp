#include "agent/storage/safetensors.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <tuple>
#include <utility>

namespace rouse::storage {
namespace {

using Json = nlohmann::json;

constexpr std::size_t kMaxDimensions = 16;
constexpr std::size_t kMaxName = 4096;
constexpr std::size_t kMaxShown = 200;
constexpr std::uint64_t kMaxDimension = std::uint64_t{1} << 53;  // exact in every JSON reader
constexpr std::string_view kMetadataName = "__metadata__";
constexpr std::string_view kRemedy = "; fetch the file again or write the checkpoint anew";

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

// Takes the events of the parser, because only they show a name that comes twice, and because a
// document tree of a 100 MB header would take gigabytes.
class HeaderHandler final : public nlohmann::json_sax<Json> {
 public:
  std::vector<FileTensor> tensors;
  std::string problem;  // what is wrong, empty if nothing

  bool start_object(std::size_t) override {
    switch (at_) {
      case At::kStart:
        at_ = At::kTop;
        return true;
      case At::kTopValue:
        if (name_ == kMetadataName) {
          if (std::exchange(has_metadata_, true)) return Fail("is there twice");
          at_ = At::kMetadata;
          return true;
        }
        at_ = At::kTensor;
        seen_ = 0;
        tensors.emplace_back().name = name_;
        return true;
      default:
        return Unexpected("an object");
    }
  }

  bool key(std::string& name) override {
    switch (at_) {
      case At::kTop:
        name_ = std::move(name);
        if (name_.empty() || name_.size() > kMaxName)
          return Fail("a name must have 1 to " + std::to_string(kMaxName) + " bytes");
        if (tensors.size() == kMaxTensors)
          return Fail("there are more than " + std::to_string(kMaxTensors) + " tensors");
        at_ = At::kTopValue;
        return true;
      case At::kMetadata:
        if (!metadata_keys_.insert(name).second) return Fail(Quoted(name) + " is there twice");
        at_ = At::kMetadataValue;
        return true;
      default: {  // kTensor
        static constexpr std::pair<std::string_view, At> kFields[] = {
            {"dtype", At::kDtype}, {"shape", At::kShape}, {"data_offsets", At::kOffsets}};
        for (unsigned i = 0; i < std::size(kFields); ++i) {
          if (name != kFields[i].first) continue;
          if ((seen_ & (1u << i)) != 0) return Fail(name + " is there twice");
          seen_ |= 1u << i;
          at_ = kFields[i].second;
          return true;
        }
        return Fail("unknown field " + Quoted(name));
      }
    }
  }

  bool string(std::string& value) override {
    if (at_ == At::kMetadataValue) {
      at_ = At::kMetadata;
      return true;
    }
    if (at_ != At::kDtype) return Unexpected("a string");
    tensors.back().dtype = FindDtype(value);
    if (tensors.back().dtype == nullptr) return Fail("unknown dtype " + Quoted(value));
    at_ = At::kTensor;
    return true;
  }

  bool start_array(std::size_t) override {
    if (at_ != At::kShape && at_ != At::kOffsets) return Unexpected("an array");
    at_ = at_ == At::kShape ? At::kShapeItems : At::kOffsetItems;
    offsets_.clear();
    return true;
  }

  bool number_unsigned(std::uint64_t value) override {
    if (at_ == At::kShapeItems) {
      auto& shape = tensors.back().shape;
      if (shape.size() == kMaxDimensions)
        return Fail("shape has more than " + std::to_string(kMaxDimensions) + " dimensions");
      if (value > kMaxDimension) return Fail("shape: " + std::to_string(value) + " is too large");
      shape.push_back(value);
      return true;
    }
    if (at_ != At::kOffsetItems) return Unexpected("a number");
    if (offsets_.size() == 2) return Fail("data_offsets has more than 2 numbers");
    offsets_.push_back(value);
    return true;
  }

  bool end_array() override {
    if (at_ == At::kOffsetItems) {
      if (offsets_.size() != 2) return Fail("data_offsets has fewer than 2 numbers");
      tensors.back().begin = offsets_[0];
      tensors.back().end = offsets_[1];
    }
    at_ = At::kTensor;
    return true;
  }

  bool end_object() override {
    if (at_ == At::kTensor && seen_ != 7) {
      return Fail(std::string((seen_ & 1) == 0   ? "dtype"
                              : (seen_ & 2) == 0 ? "shape"
                                                 : "data_offsets") +
                  " is missing");
    }
    at_ = at_ == At::kTop ? At::kEnd : At::kTop;
    return true;
  }

  bool null() override { return Unexpected("null"); }
  bool boolean(bool) override { return Unexpected("a boolean"); }
  bool number_integer(std::int64_t) override { return Unexpected("a negative number"); }
  bool number_float(double, const std::string&) override {
    return Unexpected("a number that is no 64-bit integer");
  }
  bool binary(Json::binary_t&) override { return Unexpected("binary data"); }

  bool parse_error(std::size_t, const std::string&, const Json::exception& error) override {
    problem = "the header is not valid JSON: " + std::string(error.what()).substr(0, kMaxShown);
    return false;
  }

 private:
  // Where the parser stands: in which object, or before or in the value of which field.
  enum class At {
    kStart,
    kTop,
    kTopValue,
    kMetadata,
    kMetadataValue,
    kTensor,
    kDtype,
    kShape,
    kShapeItems,
    kOffsets,
    kOffsetItems,
    kEnd,
  };

  std::string Where() const {
    switch (at_) {
      case At::kStart:
      case At::kTop:
      case At::kEnd:
        return "the header: ";
      default:
        return (name_ == kMetadataName ? std::string(kMetadataName) : "tensor " + Quoted(name_)) +
               ": ";
    }
  }

  bool Fail(const std::string& text) {
    problem = Where() + text;
    return false;
  }

  bool Unexpected(std::string_view what) {
    switch (at_) {
      case At::kDtype:
        return Fail("dtype: expected a string, got " + std::string(what));
      case At::kShape:
      case At::kShapeItems:
        return Fail("shape: expected an array of non-negative integers, got " + std::string(what));
      case At::kOffsets:
      case At::kOffsetItems:
        return Fail("data_offsets: expected an array of two non-negative integers, got " +
                    std::string(what));
      case At::kMetadataValue:
        return Fail("expected strings, got " + std::string(what));
      default:
        return Fail("expected an object, got " + std::string(what));
    }
  }

  At at_ = At::kStart;
  std::string name_;
  unsigned seen_ = 0;  // of kFields
  bool has_metadata_ = false;
  std::set<std::string> metadata_keys_;
  std::vector<std::uint64_t> offsets_;
};

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
                         std::string(kRemedy));
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
                           " bytes, too few for a safetensors file" + std::string(kRemedy));
  }
  std::uint64_t length = 0;
  for (std::size_t i = kHeaderLengthBytes; i-- > 0;) {
    length = length << 8 | std::to_integer<std::uint64_t>(first[i]);
  }
  if (length < 2 || length > kMaxHeaderBytes) {
    return InvalidArgument(what + "its header would have " + std::to_string(length) +
                           " bytes; a safetensors header has 2 to " +
                           std::to_string(kMaxHeaderBytes) + std::string(kRemedy));
  }
  if (length > file_bytes - kHeaderLengthBytes) {
    return InvalidArgument(what + "has " + std::to_string(file_bytes) +
                           " bytes and ends inside its header of " + std::to_string(length) +
                           std::string(kRemedy));
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
    return InvalidArgument(what + "the header does not begin with {" + std::string(kRemedy));
  }
  HeaderHandler handler;
  if (!Json::sax_parse(text, &handler)) {
    return InvalidArgument(what + handler.problem + std::string(kRemedy));
  }
  ShardHeader header{.data_offset = kHeaderLengthBytes + text.size(),
                     .data_bytes = file_bytes - kHeaderLengthBytes - text.size(),
                     .tensors = std::move(handler.tensors)};
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
                             std::string(kRemedy));
    }
    end = tensor.end;
  }
  if (end > header.data_bytes) {
    return InvalidArgument(
        what + "has " + std::to_string(file_bytes) + " bytes, its header describes " +
        std::to_string(end + header.data_offset) + "; tensor " +
        Quoted(header.tensors.back().name) + " is cut off" + std::string(kRemedy));
  }
  if (end < header.data_bytes) {
    return InvalidArgument(what + "its last " + std::to_string(header.data_bytes - end) +
                           " bytes belong to no tensor, which the format forbids" +
                           std::string(kRemedy));
  }
  return header;
}

}  // namespace rouse::storage
