#include "agent/storage/header_parser.h"

#include <iterator>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

namespace rouse::storage {
namespace {

using Json = nlohmann::json;

constexpr std::size_t kMaxShownOfError = 200;
constexpr std::size_t kMaxDimensions = 16;
constexpr std::uint64_t kMaxDimension = std::uint64_t{1} << 53;  // exact in every JSON reader
constexpr std::string_view kMetadataName = "__metadata__";

// Takes the events of the parser, because only they show a name that comes twice, and because a
// document tree of a 100 MB header would take gigabytes.
class HeaderHandler final : public nlohmann::json_sax<Json> {
 public:
  ParsedHeader parsed;

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
        parsed.tensors.emplace_back().name = name_;
        return true;
      default:
        return Unexpected("an object");
    }
  }

  bool key(std::string& name) override {
    switch (at_) {
      case At::kTop:
        name_ = std::move(name);
        if (name_.empty() || name_.size() > kMaxTensorName)
          return Fail("a name must have 1 to " + std::to_string(kMaxTensorName) + " bytes");
        if (parsed.tensors.size() == kMaxTensors)
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
    parsed.tensors.back().dtype = FindDtype(value);
    if (parsed.tensors.back().dtype == nullptr) return Fail("unknown dtype " + Quoted(value));
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
      auto& shape = parsed.tensors.back().shape;
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
      parsed.tensors.back().begin = offsets_[0];
      parsed.tensors.back().end = offsets_[1];
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
    parsed.problem =
        "the header is not valid JSON: " + std::string(error.what()).substr(0, kMaxShownOfError);
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
    parsed.problem = Where() + text;
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

}  // namespace

ParsedHeader ParseHeader(std::string_view text) {
  HeaderHandler handler;
  // False with a problem set, by the handler itself or by its parse_error.
  (void)Json::sax_parse(text, &handler);
  return std::move(handler.parsed);
}

}  // namespace rouse::storage
