#include "agent/storage/checkpoint.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <unordered_map>
#include <utility>

#include "common/json.h"

namespace rouse::storage {
namespace {

using Json = nlohmann::json;

constexpr std::size_t kMaxFileName = 255;
constexpr std::size_t kMaxDepth = 64;
constexpr std::string_view kSuffix = ".safetensors";
constexpr std::string_view kRemedy = "; fetch the checkpoint again";

std::string CheckFileName(std::string_view name) {
  if (name.size() > kMaxFileName || !name.ends_with(kSuffix) ||
      name.find_first_of(std::string_view("/\\\0", 3)) != std::string_view::npos ||
      name.starts_with('.')) {
    return "is no plain name of a .safetensors file in the checkpoint's folder";
  }
  return "";
}

// Events of the parser, for the same reasons as in safetensors.cpp. All but "weight_map" is
// skipped, whatever it is.
class IndexHandler final : public nlohmann::json_sax<Json> {
 public:
  ShardIndex index;
  bool has_map = false;
  std::string problem;

  bool start_object(std::size_t) override {
    ++depth_;
    if (depth_ == 1) return true;
    if (depth_ == 2 && top_ == "weight_map") {
      if (std::exchange(has_map, true)) return Fail("weight_map is there twice");
      in_map_ = true;
      return true;
    }
    return Nested();
  }
  bool end_object() override {
    --depth_;
    in_map_ = false;
    return true;
  }
  bool start_array(std::size_t) override {
    ++depth_;
    return depth_ > 1 ? Nested() : Other("an array");
  }
  bool end_array() override {
    --depth_;
    return true;
  }
  bool key(std::string& name) override {
    if (depth_ == 1)
      top_ = std::move(name);
    else if (in_map_)
      tensor_ = std::move(name);
    return true;
  }
  bool string(std::string& value) override {
    if (!in_map_) return Other("a string");
    if (tensor_.empty() || tensor_.size() > kMaxTensorName) {
      return Fail("weight_map: a name must have 1 to " + std::to_string(kMaxTensorName) + " bytes");
    }
    if (index.size() == kMaxTensors) {
      return Fail("weight_map has more than " + std::to_string(kMaxTensors) + " tensors");
    }
    if (const std::string wrong = CheckFileName(value); !wrong.empty()) {
      return Fail("weight_map: tensor " + Quoted(tensor_) + ": " + Quoted(value) + " " + wrong);
    }
    if (!index.emplace(tensor_, std::move(value)).second) {
      return Fail("weight_map: tensor " + Quoted(tensor_) + " is there twice");
    }
    return true;
  }
  bool null() override { return Other("null"); }
  bool boolean(bool) override { return Other("a boolean"); }
  bool number_integer(std::int64_t) override { return Other("a number"); }
  bool number_unsigned(std::uint64_t) override { return Other("a number"); }
  bool number_float(double, const std::string&) override { return Other("a number"); }
  bool binary(Json::binary_t&) override { return Other("binary data"); }
  bool parse_error(std::size_t, const std::string&, const Json::exception& error) override {
    problem = "not valid JSON: " + std::string(error.what()).substr(0, 200);
    return false;
  }

 private:
  bool Fail(std::string text) {
    problem = std::move(text);
    return false;
  }
  bool Nested() {
    if (in_map_) return Other("an object or array");
    if (depth_ == 2 && top_ == "weight_map") return Other("an array");
    return depth_ <= kMaxDepth ||
           Fail("nested deeper than " + std::to_string(kMaxDepth) + " levels");
  }
  bool Other(const std::string& what) {
    if (in_map_) {
      return Fail("weight_map: tensor " + Quoted(tensor_) + ": expected a file name, got " + what);
    }
    if (depth_ == 0 || (what == "an array" && depth_ == 1)) {
      return Fail("expected an object, got " + what);
    }
    if (top_ == "weight_map" && depth_ <= 2) {
      return Fail("weight_map: expected an object, got " + what);
    }
    return true;
  }

  std::size_t depth_ = 0;
  bool in_map_ = false;
  std::string top_;
  std::string tensor_;
};

Status CheckIndex(const std::vector<Shard>& shards, const ShardIndex& index,
                  const std::unordered_map<std::string_view, std::string_view>& places) {
  for (const auto& [name, file] : index) {
    const auto place = places.find(name);
    if (place != places.end() && place->second == file) continue;
    const bool read =
        std::any_of(shards.begin(), shards.end(),
                    [&wanted = file](const Shard& shard) { return shard.file == wanted; });
    if (!read) {
      return NotFound(std::string(kIndexFile) + ": tensor " + Quoted(name) + ": there is no file " +
                      file + std::string(kRemedy));
    }
    return InvalidArgument(std::string(kIndexFile) + ": tensor " + Quoted(name) + " is not in " +
                           file +
                           (place == places.end() ? "" : ", but in " + std::string(place->second)) +
                           std::string(kRemedy));
  }
  return {};
}

}  // namespace

std::uint64_t Checkpoint::data_bytes() const {
  std::uint64_t bytes = 0;
  for (const Shard& shard : shards) bytes += shard.header.data_bytes;
  return bytes;
}

std::size_t Checkpoint::tensor_count() const {
  std::size_t count = 0;
  for (const Shard& shard : shards) count += shard.header.tensors.size();
  return count;
}

Result<ShardIndex> DecodeIndex(std::string_view text, std::string_view file) {
  const std::string what = std::string(file) + ": ";
  IndexHandler handler;
  if (!Json::sax_parse(text, &handler)) {
    return InvalidArgument(what + handler.problem + std::string(kRemedy));
  }
  if (!handler.has_map || handler.index.empty()) {
    return InvalidArgument(what + "weight_map is " + (handler.has_map ? "empty" : "missing") +
                           std::string(kRemedy));
  }
  return std::move(handler.index);
}

Result<std::vector<std::string>> ChooseShards(const std::optional<ShardIndex>& index,
                                              const std::vector<std::string>& files) {
  const std::set<std::string> present(files.begin(), files.end());
  std::set<std::string> chosen;
  if (index) {
    for (const auto& [tensor, file] : *index) {
      if (!present.contains(file)) {
        return NotFound(std::string(kIndexFile) + ": tensor " + Quoted(tensor) +
                        ": there is no file " + file + std::string(kRemedy));
      }
      chosen.insert(file);
    }
  } else if (present.contains(std::string(kSingleFile))) {
    chosen.emplace(kSingleFile);
  } else {
    for (const std::string& file : files) {
      if (CheckFileName(file).empty()) chosen.insert(file);
    }
  }
  if (chosen.empty()) {
    return NotFound(
        "there is no safetensors file; convert the checkpoint, or load it with the "
        "engine's own loader");
  }
  if (chosen.size() > kMaxShards) {
    return InvalidArgument("there are " + std::to_string(chosen.size()) +
                           " safetensors files, more than " + std::to_string(kMaxShards));
  }
  return std::vector<std::string>(chosen.begin(), chosen.end());
}

Result<Checkpoint> MakeCheckpoint(std::vector<Shard> shards,
                                  const std::optional<ShardIndex>& index) {
  std::sort(shards.begin(), shards.end(),
            [](const Shard& a, const Shard& b) { return a.file < b.file; });
  std::unordered_map<std::string_view, std::string_view> places;
  for (const Shard& shard : shards) {
    for (const FileTensor& tensor : shard.header.tensors) {
      const auto [place, added] = places.emplace(tensor.name, shard.file);
      if (!added) {
        return InvalidArgument("tensor " + Quoted(tensor.name) + " is in " +
                               std::string(place->second) + " and in " + shard.file +
                               "; keep the files of one checkpoint only in the folder");
      }
    }
  }
  if (places.size() > kMaxTensors) {
    return InvalidArgument("the checkpoint has more than " + std::to_string(kMaxTensors) +
                           " tensors");
  }
  if (index) ROUSE_RETURN_IF_ERROR(CheckIndex(shards, *index, places));
  return Checkpoint{.shards = std::move(shards)};
}

std::string DescribeTensors(const Checkpoint& checkpoint) {
  Json out = Json::object();
  for (const Shard& shard : checkpoint.shards) {
    for (const FileTensor& tensor : shard.header.tensors) {
      out[tensor.name] = {{"dtype", tensor.dtype->name}, {"shape", tensor.shape}};
    }
  }
  return json::Canonical(out);
}

}  // namespace rouse::storage
