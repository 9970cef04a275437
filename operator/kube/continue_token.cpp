#include "operator/kube/continue_token.h"

#include "common/json.h"

namespace rouse::kube {
namespace {

using json::Json;

// Follows the parser no further than to the end of `metadata`, or to `items`.
class HeadReader final : public nlohmann::json_sax<Json> {
 public:
  std::string token;

  bool key(string_t& name) override {
    if (depth_ == 1) in_metadata_ = name == "metadata";
    at_token_ = depth_ == 2 && in_metadata_ && name == "continue";
    return !(depth_ == 1 && name == "items");
  }
  bool string(string_t& value) override {
    if (at_token_) token = std::move(value);
    return !at_token_;
  }
  bool start_object(std::size_t) override { return ++depth_ < kTooDeep; }
  bool start_array(std::size_t) override { return ++depth_ < kTooDeep; }
  bool end_object() override { return !(--depth_ == 1 && in_metadata_); }
  bool end_array() override {
    --depth_;
    return true;
  }
  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool parse_error(std::size_t, const std::string&, const Json::exception&) override {
    return false;
  }

 private:
  static constexpr int kTooDeep = 16;

  int depth_ = 0;
  bool in_metadata_ = false;
  bool at_token_ = false;
};

}  // namespace

std::string ContinueTokenOf(std::string_view page) {
  HeadReader reader;
  static_cast<void>(Json::sax_parse(page, &reader));
  return reader.token;
}

}  // namespace rouse::kube
