#include "common/json.h"

#include <algorithm>

namespace rouse::json {
namespace {

constexpr int kMaxDepth = 64;

// A long value in an error message helps nobody and may be hostile.
std::string Shorten(std::string text) {
  if (text.size() > 200) text = text.substr(0, 200) + "…";
  return text;
}

}  // namespace

Result<Json> Parse(std::string_view text, std::string_view what, std::size_t max_bytes,
                   const std::optional<Omit>& omit) {
  if (text.size() > max_bytes) {
    return Status(StatusCode::kResourceExhausted,
                  std::string(what) + ": document of " + std::to_string(text.size()) +
                      " bytes is over the limit of " + std::to_string(max_bytes));
  }
  bool too_deep = false;
  try {
    // The library's destructor and our own walks recurse: depth is bounded while parsing. Once the
    // bound is passed everything below is discarded, so nothing deep is ever built.
    auto value = Json::parse(text, [&](int depth, Json::parse_event_t event, Json& parsed) {
      if (depth > kMaxDepth) too_deep = true;
      if (omit && event == Json::parse_event_t::key && depth == omit->depth &&
          parsed.get_ref<const std::string&>() == omit->key) {
        return false;
      }
      return !too_deep;
    });
    if (too_deep) {
      return InvalidArgument(std::string(what) + ": nested deeper than " +
                             std::to_string(kMaxDepth) + " levels");
    }
    return value;
  } catch (const Json::exception& error) {
    return InvalidArgument(std::string(what) + ": not valid JSON: " + Shorten(error.what()));
  }
}

std::string Dump(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string Canonical(const Json& value) {
  return Dump(value);
}

Reader::Reader(const Json& object, std::string path) : object_(object), path_(std::move(path)) {
  if (!object_.is_object()) {
    status_ = InvalidArgument((path_.empty() ? "document" : path_) + ": expected an object, got " +
                              object_.type_name());
  }
}

const Json* Reader::Find(std::string_view key) const {
  if (!object_.is_object()) return nullptr;
  const auto it = object_.find(std::string(key));
  if (it == object_.end() || it->is_null()) return nullptr;
  return &*it;
}

bool Reader::Has(std::string_view key) const {
  return Find(key) != nullptr;
}

std::string Reader::Path(std::string_view key) const {
  return path_.empty() ? std::string(key) : path_ + "." + std::string(key);
}

std::string Reader::Path(std::string_view key, std::size_t index) const {
  return Path(key) + "[" + std::to_string(index) + "]";
}

void Reader::Fail(std::string_view key, std::string_view problem) {
  if (status_.ok()) status_ = InvalidArgument(Path(key) + ": " + Shorten(std::string(problem)));
}

void Reader::Take(const Status& nested) {
  if (status_.ok()) status_ = nested;
}

std::string Reader::String(std::string_view key) {
  const Json* value = Find(key);
  if (value == nullptr) {
    Fail(key, "missing, expected a string");
    return {};
  }
  if (!value->is_string()) {
    Fail(key, std::string("expected a string, got ") + value->type_name());
    return {};
  }
  return value->get<std::string>();
}

std::int64_t Reader::Int(std::string_view key, std::int64_t min, std::int64_t max) {
  const Json* value = Find(key);
  if (value == nullptr) {
    Fail(key, "missing, expected an integer");
    return min;
  }
  if (!value->is_number_integer()) {
    Fail(key, std::string("expected an integer, got ") + value->type_name());
    return min;
  }
  const bool over = value->is_number_unsigned() &&
                    value->get<std::uint64_t>() > static_cast<std::uint64_t>(INT64_MAX);
  const std::int64_t number = over ? INT64_MAX : value->get<std::int64_t>();
  if (over || number < min || number > max) {
    Fail(key, value->dump() + " is out of range, expected " + std::to_string(min) + " to " +
                  std::to_string(max));
    return min;
  }
  return number;
}

double Reader::Number(std::string_view key) {
  const Json* value = Find(key);
  if (value == nullptr || !value->is_number()) {
    Fail(key, value == nullptr ? std::string("missing, expected a number")
                               : std::string("expected a number, got ") + value->type_name());
    return 0;
  }
  return value->get<double>();
}

bool Reader::Bool(std::string_view key) {
  const Json* value = Find(key);
  if (value == nullptr || !value->is_boolean()) {
    Fail(key, value == nullptr ? std::string("missing, expected true or false")
                               : std::string("expected true or false, got ") + value->type_name());
    return false;
  }
  return value->get<bool>();
}

std::string Reader::StringOr(std::string_view key, std::string fallback) {
  return Has(key) ? String(key) : fallback;
}

std::int64_t Reader::IntOr(std::string_view key, std::int64_t fallback, std::int64_t min,
                           std::int64_t max) {
  return Has(key) ? Int(key, min, max) : fallback;
}

bool Reader::BoolOr(std::string_view key, bool fallback) {
  return Has(key) ? Bool(key) : fallback;
}

const Json& Reader::Container(std::string_view key, bool object, bool required) {
  static const Json empty_object = Json::object();
  static const Json empty_array = Json::array();
  const Json& empty = object ? empty_object : empty_array;
  const std::string_view kind = object ? "an object" : "an array";
  const Json* value = Find(key);
  if (value == nullptr) {
    if (required) Fail(key, "missing, expected " + std::string(kind));
    return empty;
  }
  if (object ? !value->is_object() : !value->is_array()) {
    Fail(key, "expected " + std::string(kind) + ", got " + value->type_name());
    return empty;
  }
  return *value;
}

const Json& Reader::Object(std::string_view key) {
  return Container(key, true, true);
}
const Json& Reader::Array(std::string_view key) {
  return Container(key, false, true);
}
const Json& Reader::ObjectOrEmpty(std::string_view key) {
  return Container(key, true, false);
}
const Json& Reader::ArrayOrEmpty(std::string_view key) {
  return Container(key, false, false);
}

std::vector<std::string> Reader::Strings(std::string_view key) {
  std::vector<std::string> out;
  for (const Json& item : ArrayOrEmpty(key)) {
    if (!item.is_string()) {
      Fail(std::string(key) + "[" + std::to_string(out.size()) + "]",
           std::string("expected a string, got ") + item.type_name());
      return {};
    }
    out.push_back(item.get<std::string>());
  }
  return out;
}

void Reader::Only(std::initializer_list<std::string_view> keys) {
  if (!object_.is_object()) return;
  for (const auto& [key, value] : object_.items()) {
    if (std::find(keys.begin(), keys.end(), key) != keys.end()) continue;
    return Fail(Shorten(key), "is not known here");
  }
}

}  // namespace rouse::json
