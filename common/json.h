// Strict reading of JSON: every error names the field by its path from the root of the document.
//
// Used for everything that arrives from outside (API objects, peers, engines, bundles). A Reader
// collects the first error and answers with defaults afterwards, so that decoding code is a plain
// list of fields with one check at the end:
//
//   json::Reader in(document, "report");
//   Report report{.pod = in.String("pod"), .state = in.Enum("state", kStates), ...};
//   if (!in.status().ok()) return in.status();
//
// Not thread-safe; a Reader refers to its document and must not outlive it.

#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/result.h"

namespace rouse::json {

using Json = nlohmann::json;

/// What Parse leaves out, so that it costs neither memory nor time.
struct Omit {
  std::string_view key;  ///< The member of this name...
  int depth = 0;         ///< ...of objects this deep: 1 is the document itself.
};

/// Parses `text`. InvalidArgument names `what`, the byte offset and the reason; documents nested
/// deeper than 64 levels or longer than `max_bytes` are refused.
Result<Json> Parse(std::string_view text, std::string_view what, std::size_t max_bytes = 64u << 20,
                   const std::optional<Omit>& omit = std::nullopt);

/// JSON text that never throws: invalid UTF-8 is replaced.
std::string Dump(const Json& value);

/// Canonical JSON: keys sorted, no white space, UTF-8. What digests are taken over.
std::string Canonical(const Json& value);

/// One enum value and its spelling on the wire.
template <typename E>
struct EnumName {
  E value;
  std::string_view name;
};

class Reader {
 public:
  /// Reads the members of `object`; `path` is what errors call it ("report", "" for the root).
  Reader(const Json& object, std::string path);

  /// Required members. A missing field, null or another type is an error.
  std::string String(std::string_view key);
  std::int64_t Int(std::string_view key, std::int64_t min = 0,
                   std::int64_t max = INT64_C(9007199254740992));
  double Number(std::string_view key);
  bool Bool(std::string_view key);

  /// Optional members: `fallback` when missing or null, an error when of another type.
  std::string StringOr(std::string_view key, std::string fallback);
  std::int64_t IntOr(std::string_view key, std::int64_t fallback, std::int64_t min = 0,
                     std::int64_t max = INT64_C(9007199254740992));
  bool BoolOr(std::string_view key, bool fallback);

  template <typename E>
  E Enum(std::string_view key, std::span<const EnumName<E>> names) {
    const std::string text = String(key);
    return EnumValue<E>(key, text, names);
  }
  template <typename E>
  E EnumOr(std::string_view key, std::span<const EnumName<E>> names, E fallback) {
    return Has(key) ? Enum<E>(key, names) : fallback;
  }

  /// True when the member is there and not null.
  bool Has(std::string_view key) const;

  /// The member as an object or array. When it is missing or of another type: an error, and an
  /// empty object or array.
  const Json& Object(std::string_view key);
  const Json& Array(std::string_view key);
  /// The same, but missing or null is no error.
  const Json& ObjectOrEmpty(std::string_view key);
  const Json& ArrayOrEmpty(std::string_view key);

  /// What `decode` makes of a Reader of each object in an array, which may have up to `max`. Ends
  /// at the first error, of an entry too; decodes none when this Reader has one already.
  template <typename Decode>
  auto Objects(std::string_view key, std::size_t max, Decode decode) {
    return DecodeEach(key, Array(key), max, decode);
  }
  /// The same, but missing or null is no error.
  template <typename Decode>
  auto ObjectsOrEmpty(std::string_view key, std::size_t max, Decode decode) {
    return DecodeEach(key, ArrayOrEmpty(key), max, decode);
  }

  std::vector<std::string> Strings(std::string_view key);

  /// For objects that nobody may add members to: any but these is an error.
  void Only(std::initializer_list<std::string_view> keys);

  /// "report.weights" for key "weights" of a Reader with path "report".
  std::string Path(std::string_view key) const;
  /// "report.rails[2]", of an entry of a member.
  std::string Path(std::string_view key, std::size_t index) const;

  /// Reports an error of the caller's own about a member.
  void Fail(std::string_view key, std::string_view problem);
  /// Takes over the first error of a nested Reader or decoder.
  void Take(const Status& nested);

  const Status& status() const { return status_; }

 private:
  const Json* Find(std::string_view key) const;
  const Json& Container(std::string_view key, bool object, bool required);

  template <typename Decode>
  auto DecodeEach(std::string_view key, const Json& list, std::size_t max, Decode& decode) {
    std::vector<decltype(decode(*this))> out;
    if (list.size() > max) Fail(key, "has more than " + std::to_string(max) + " entries");
    if (!status_.ok()) return out;
    out.reserve(list.size());
    for (const Json& item : list) {
      Reader entry(item, Path(key, out.size()));
      out.push_back(decode(entry));
      Take(entry.status());
      if (!status_.ok()) break;
    }
    return out;
  }

  template <typename E>
  E EnumValue(std::string_view key, const std::string& text, std::span<const EnumName<E>> names) {
    std::string expected;
    for (const auto& [value, name] : names) {
      if (name == text) return value;
      expected += (expected.empty() ? "" : ", ") + std::string(name);
    }
    if (status_.ok()) Fail(key, "unknown value \"" + text + "\", expected one of " + expected);
    return names.front().value;
  }

  const Json& object_;
  std::string path_;
  Status status_;
};

/// The spelling of `value` in `names`.
template <typename E>
std::string_view NameOf(E value, std::span<const EnumName<E>> names) {
  for (const auto& [known, name] : names) {
    if (known == value) return name;
  }
  return names.front().name;
}

}  // namespace rouse::json
