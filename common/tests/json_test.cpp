#include "common/json.h"

#include <catch2/catch.hpp>

#include "common/base64.h"
#include "common/sha256.h"

namespace rouse::json {
namespace {

enum class Color { kRed, kBlue };
constexpr EnumName<Color> kColors[] = {{Color::kRed, "Red"}, {Color::kBlue, "Blue"}};

TEST_CASE("a missing field, a wrong type and an unknown enum are errors that name the field") {
  const Json document = {{"a", {{"count", "seven"}, {"color", "Green"}}}};
  Reader root(document, "doc");
  Reader a(root.Object("a"), root.Path("a"));
  SECTION("wrong type") {
    a.Int("count");
    CHECK(a.status() == InvalidArgument("doc.a.count: expected an integer, got string"));
  }
  SECTION("missing") {
    a.String("name");
    CHECK(a.status() == InvalidArgument("doc.a.name: missing, expected a string"));
  }
  SECTION("unknown enum") {
    a.Enum<Color>("color", kColors);
    CHECK(a.status() ==
          InvalidArgument("doc.a.color: unknown value \"Green\", expected one of Red, Blue"));
  }
}

TEST_CASE("the first error is kept and later reads give defaults") {
  const Json document = {{"b", 1}};
  Reader in(document, "");
  CHECK(in.String("a").empty());
  CHECK(in.Bool("b") == false);
  CHECK(in.status() == InvalidArgument("a: missing, expected a string"));
}

TEST_CASE("integers out of range are refused, whatever their sign or size") {
  const Json document = {{"low", -1}, {"high", UINT64_MAX}, {"real", 1.5}};
  for (const char* key : {"low", "high", "real"}) {
    Reader in(document, "");
    in.Int(key);
    CHECK(in.status().code() == StatusCode::kInvalidArgument);
    CHECK(in.status().message().starts_with(key));
  }
}

TEST_CASE("an optional field may be null but not of another type") {
  const Json document = {{"a", nullptr}, {"b", 3}};
  Reader in(document, "");
  CHECK(in.StringOr("a", "x") == "x");
  CHECK(in.status().ok());
  in.StringOr("b", "x");
  CHECK_FALSE(in.status().ok());
}

TEST_CASE("a value that is no object is an error at once") {
  const Json document = Json::array();
  Reader in(document, "report");
  CHECK(in.status() == InvalidArgument("report: expected an object, got array"));
}

TEST_CASE("parsing refuses garbage, depth and size without harm") {
  CHECK(Parse("{\"a\": [1, 2]}", "x").ok());
  CHECK(Parse("{\"a\": [1, 2", "x").status().message().starts_with("x: not valid JSON"));
  CHECK_FALSE(Parse(std::string(100'000, '['), "x").ok());
  CHECK_FALSE(Parse(std::string(1000, '[') + std::string(1000, ']'), "x").ok());
  CHECK(Parse("[1,2,3]", "x", 4).status().code() == StatusCode::kResourceExhausted);
  CHECK_FALSE(Parse("", "x").ok());
}

TEST_CASE("a member can be left out where it stands, and nowhere else") {
  const auto omit = Omit{.key = "fields", .depth = 2};
  const auto parsed =
      Parse(R"({"fields":1,"a":{"fields":[{"fields":{}},2],"b":{"fields":3}},"c":["fields"]})", "x",
            1u << 20, omit);
  REQUIRE(parsed.ok());
  CHECK(*parsed == Json{{"fields", 1}, {"a", {{"b", {{"fields", 3}}}}}, {"c", {"fields"}}});
  CHECK_FALSE(Parse(R"({"a":{"fields":[})", "x", 1u << 20, omit).ok());
  std::string deep = R"({"a":{"fields":)" + std::string(100, '[') + std::string(100, ']') + "}}";
  CHECK_FALSE(Parse(deep, "x", 1u << 20, omit).ok());
}

TEST_CASE("a member that an object may not have is named") {
  const auto value = Parse(R"({"a": 1, "b": null})", "x");
  Reader fits(*value, "in");
  fits.Only({"b", "a"});
  CHECK(fits.status().ok());
  Reader more(*value, "in");
  more.Only({"a"});
  CHECK(more.status().message() == "in.b: is not known here");
}

TEST_CASE("canonical JSON sorts keys and has no white space") {
  const auto value = Parse(R"({"b": 1, "a": {"d": "é", "c": [1, 2]}})", "x");
  REQUIRE(value.ok());
  CHECK(Canonical(*value) == R"({"a":{"c":[1,2],"d":"é"},"b":1})");
  CHECK(Sha256Hex("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
}

TEST_CASE("dumping invalid UTF-8 does not throw") {
  CHECK_NOTHROW(Dump(Json("\xff\xfe")));
}

TEST_CASE("base64 reads back, and refuses what it would not write") {
  for (const std::string text : {"", "a", "ab", "abc", "abcd"}) {
    const auto back = Base64Decode(Base64Encode(text), "x");
    REQUIRE(back.ok());
    CHECK(*back == text);
  }
  for (const char* bad : {"a", "ab=c", "====", "YQ=\n", "YR==", "Y!=="}) {
    CHECK_FALSE(Base64Decode(bad, "x").ok());
  }
}

}  // namespace
}  // namespace rouse::json
