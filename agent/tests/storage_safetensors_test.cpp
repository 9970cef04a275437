#include <catch2/catch.hpp>

#include "agent/storage/safetensors.h"
#include "agent/tests/storage_fixture.h"

namespace rouse::storage {
namespace {

using Catch::Contains;

// The header `text` of a file that has `data_bytes` bytes behind it.
Result<ShardHeader> Decode(const std::string& text, std::uint64_t data_bytes) {
  return DecodeHeader(text, kHeaderLengthBytes + text.size() + data_bytes, "a.safetensors");
}

std::string Error(const std::string& text, std::uint64_t data_bytes) {
  const auto header = Decode(text, data_bytes);
  REQUIRE_FALSE(header.ok());
  REQUIRE(header.status().code() == StatusCode::kInvalidArgument);
  REQUIRE_THAT(header.status().message(), Contains("a.safetensors: "));
  return header.status().message();
}

std::string One(const std::string& name, const std::string& dtype, const std::string& shape,
                const std::string& offsets) {
  return "\"" + name + R"(":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" +
         offsets + "}";
}

std::string Length(std::uint64_t length, std::uint64_t file_bytes) {
  std::string first;
  for (int i = 0; i < 8; ++i) first.push_back(static_cast<char>(length >> (8 * i)));
  const auto decoded =
      DecodeHeaderLength(std::as_bytes(std::span(first)), file_bytes, "a.safetensors");
  return decoded.ok() ? std::to_string(*decoded) : decoded.status().message();
}

TEST_CASE("a header's tensors come in the order of their bytes", "[storage]") {
  const auto header = Decode(
      R"({"__metadata__":{"format":"pt"},)" + One("b", "BF16", "[2,3]", "[4,16]") + "," +
          One("a", "F32", "[]", "[0,4]") + "," + One("none", "I64", "[0,7]", "[16,16]") + "}  ",
      16);
  REQUIRE(header.ok());
  REQUIRE(header->data_bytes == 16);
  REQUIRE(header->tensors.size() == 3);
  REQUIRE(header->tensors[0].name == "a");
  REQUIRE(header->tensors[0].shape.empty());
  REQUIRE(header->tensors[1].name == "b");
  REQUIRE(header->tensors[1].shape == std::vector<std::uint64_t>{2, 3});
  REQUIRE(header->tensors[1].dtype->torch == "bfloat16");
  REQUIRE(header->tensors[1].begin == 4);
  REQUIRE(header->tensors[2].name == "none");
}

TEST_CASE("a file without tensors is a good one", "[storage]") {
  REQUIRE(Decode("{}", 0).ok());
  REQUIRE(Decode(R"({"__metadata__":{}})", 0).ok());
  REQUIRE_THAT(Error("{}", 3), Contains("last 3 bytes belong to no tensor"));
}

TEST_CASE("elements of less than a byte are counted in bits", "[storage]") {
  REQUIRE(Decode("{" + One("a", "F4", "[2,3]", "[0,3]") + "}", 3).ok());
  REQUIRE(Decode("{" + One("a", "F6_E2M3", "[4]", "[0,3]") + "}", 3).ok());
  REQUIRE_THAT(Error("{" + One("a", "F4", "[3]", "[0,2]") + "}", 2), Contains("whole number"));
}

TEST_CASE("absurd header lengths are refused before anything is read", "[storage]") {
  REQUIRE(Length(100, 200) == "100");
  REQUIRE(Length(kMaxHeaderBytes, 1'000'000'000) == "100000000");
  REQUIRE_THAT(Length(kMaxHeaderBytes + 1, 1'000'000'000), Contains("its header would have"));
  REQUIRE_THAT(Length(~std::uint64_t{0}, 1'000'000'000), Contains("18446744073709551615"));
  REQUIRE_THAT(Length(0, 100), Contains("would have 0 bytes"));
  REQUIRE_THAT(Length(193, 200), Contains("ends inside its header"));
  REQUIRE_THAT(Length(0, 7), Contains("too few"));
  const std::byte short_file[3] = {};
  REQUIRE_FALSE(DecodeHeaderLength(short_file, 3, "a").ok());
  REQUIRE_THAT(Error("{", 0), Contains("JSON"));
  REQUIRE_FALSE(DecodeHeader("{}", 9, "a").ok());
}

TEST_CASE("overlaps, holes and ends that do not fit are named with the tensor", "[storage]") {
  const std::string a = One("a", "U8", "[8]", "[0,8]");
  REQUIRE_THAT(Error("{" + a + "," + One("b", "U8", "[8]", "[4,12]") + "}", 12),
               Contains("tensor \"b\"") && Contains("overlap"));
  REQUIRE_THAT(Error("{" + a + "," + One("b", "U8", "[8]", "[0,8]") + "}", 8), Contains("overlap"));
  REQUIRE_THAT(Error("{" + a + "," + One("b", "U8", "[8]", "[12,20]") + "}", 20),
               Contains("tensor \"b\"") && Contains("hole after 8"));
  REQUIRE_THAT(Error("{" + One("a", "U8", "[8]", "[1,9]") + "}", 9), Contains("hole after 0"));
  REQUIRE_THAT(Error("{" + a + "}", 7), Contains("tensor \"a\" is cut off") && Contains("fetch"));
  REQUIRE_THAT(Error("{" + a + "}", 9), Contains("last 1 bytes belong to no tensor"));
  REQUIRE_THAT(Error("{" + One("a", "U8", "[8]", "[8,0]") + "}", 8), Contains("end before"));
}

TEST_CASE("offsets must be what dtype and shape make", "[storage]") {
  REQUIRE_THAT(Error("{" + One("a", "BF16", "[4]", "[0,4]") + "}", 4),
               Contains("span 4 bytes, dtype and shape make 8"));
  REQUIRE_THAT(Error("{" + One("a", "U8", "[4294967296,4294967296]", "[0,0]") + "}", 0),
               Contains("more than 2^64 bits"));
  REQUIRE_THAT(Error("{" + One("a", "F64", "[9007199254740992,512]", "[0,0]") + "}", 0),
               Contains("more than 2^64 bits"));
  REQUIRE_THAT(Error("{" + One("a", "U8", "[18446744073709551615]", "[0,0]") + "}", 0),
               Contains("too large"));
  REQUIRE_THAT(Error("{" + One("a", "U8", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]", "[0,1]") + "}", 1),
               Contains("more than 16 dimensions"));
  REQUIRE_THAT(Error("{" + One("a", "F128", "[1]", "[0,16]") + "}", 16),
               Contains("unknown dtype \"F128\""));
}

TEST_CASE("what is there twice or missing is refused", "[storage]") {
  const std::string a = One("a", "U8", "[8]", "[0,8]");
  REQUIRE_THAT(Error("{" + a + "," + a + "}", 8), Contains("tensor \"a\" is there twice"));
  REQUIRE_THAT(Error(R"({"a":{"dtype":"U8","dtype":"U8","shape":[],"data_offsets":[0,1]}})", 1),
               Contains("dtype is there twice"));
  REQUIRE_THAT(Error(R"({"__metadata__":{"x":"1","x":"2"}})", 0), Contains("\"x\" is there twice"));
  REQUIRE_THAT(Error(R"({"__metadata__":{},"__metadata__":{}})", 0), Contains("there twice"));
  REQUIRE_THAT(Error(R"({"a":{"shape":[],"data_offsets":[0,1]}})", 1),
               Contains("dtype is missing"));
  REQUIRE_THAT(Error(R"({"a":{"dtype":"U8","data_offsets":[0,1]}})", 1),
               Contains("shape is missing"));
  REQUIRE_THAT(Error(R"({"a":{"dtype":"U8","shape":[]}})", 1), Contains("data_offsets is missing"));
  REQUIRE_THAT(Error(R"({"a":{"dtype":"U8","shape":[],"data_offsets":[0,1],"more":{}}})", 1),
               Contains("unknown field \"more\""));
}

TEST_CASE("values of the wrong kind are refused with what was expected", "[storage]") {
  REQUIRE_THAT(Error(R"([1])", 0), Contains("does not begin with {"));
  REQUIRE_THAT(Error(R"( {})", 0), Contains("does not begin with {"));
  REQUIRE_THAT(Error(R"({"a":1})", 0), Contains("expected an object, got a number"));
  REQUIRE_THAT(Error(R"({"__metadata__":{"x":1}})", 0), Contains("expected strings, got a number"));
  REQUIRE_THAT(Error(R"({"__metadata__":{"x":{}}})", 0), Contains("expected strings"));
  REQUIRE_THAT(Error(R"({"a":{"dtype":8}})", 0), Contains("dtype: expected a string"));
  REQUIRE_THAT(Error(R"({"a":{"shape":"8"}})", 0), Contains("shape: expected an array"));
  REQUIRE_THAT(Error(R"({"a":{"shape":[-1]}})", 0), Contains("negative"));
  REQUIRE_THAT(Error(R"({"a":{"shape":[1.5]}})", 0), Contains("no 64-bit integer"));
  REQUIRE_THAT(Error(R"({"a":{"shape":[[1]]}})", 0), Contains("shape: expected"));
  REQUIRE_THAT(Error(R"({"a":{"data_offsets":[0]}})", 0), Contains("fewer than 2"));
  REQUIRE_THAT(Error(R"({"a":{"data_offsets":[0,1,2]}})", 0), Contains("more than 2"));
  REQUIRE_THAT(Error(R"({"a":{"data_offsets":[0,99999999999999999999]}})", 0),
               Contains("no 64-bit integer"));
  REQUIRE_THAT(Error(R"({"":{}})", 0), Contains("1 to 4096 bytes"));
  REQUIRE_THAT(Error("{\"" + std::string(4000, 'n') + "\":{}}", 0), Contains("…"));
  REQUIRE_THAT(Error("{\"\xff\":{}}", 0), Contains("JSON"));
  REQUIRE_THAT(Error("{} x", 0), Contains("JSON"));
  REQUIRE_THAT(Error(R"({"a":)" + std::string(100'000, '{'), 0), Contains("JSON"));
}

TEST_CASE("what the header of a written file says is what was written", "[storage]") {
  std::mt19937_64 random(7);
  for (int round = 0; round < 50; ++round) {
    const auto tensors = test::RandomTensors(random() % 40, "t", random);
    const std::string file = test::MakeShard(tensors);
    const auto length =
        DecodeHeaderLength(std::as_bytes(std::span(file)).first(8), file.size(), "a");
    REQUIRE(length.ok());
    const auto header = DecodeHeader(std::string_view(file).substr(8, *length), file.size(), "a");
    REQUIRE(header.ok());
    REQUIRE(header->tensors.size() == tensors.size());
    for (const FileTensor& found : header->tensors) {
      const auto written = std::find_if(tensors.begin(), tensors.end(),
                                        [&](const auto& t) { return t.name == found.name; });
      REQUIRE(written != tensors.end());
      REQUIRE(found.shape == written->shape);
      REQUIRE(found.dtype->name == written->dtype);
      REQUIRE(file.substr(header->data_offset + found.begin, found.end - found.begin) ==
              written->content);
    }
  }
}

}  // namespace
}  // namespace rouse::storage
