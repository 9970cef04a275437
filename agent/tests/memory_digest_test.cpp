#include <catch2/catch.hpp>
#include <cstdio>
#include <set>

#include "agent/memory/chunk_digest.h"

namespace rouse::memory {
namespace {

std::vector<std::byte> Bytes(std::size_t count) {
  std::vector<std::byte> bytes(count);
  std::uint32_t state = 1;
  for (std::byte& byte : bytes)
    byte = static_cast<std::byte>((state = state * 1664525 + 1013904223) >> 24);
  return bytes;
}

std::string Hex(const BlockDigest& digest) {
  std::string text;
  for (const unsigned char byte : digest) {
    char two[3];
    std::snprintf(two, sizeof two, "%02x", byte);
    text += two;
  }
  return text;
}

TEST_CASE("a block's digest is XXH3-128 in canonical form", "[memory]") {
  // Published test vector: XXH3_128bits("") with seed 0.
  REQUIRE(Hex(DigestBlock({})) == "99aa06d3014798d86001c324468d497f");
  const std::string text = "a";
  REQUIRE(Hex(DigestBlock(std::as_bytes(std::span(text)))) == "a96faf705af16834e6c632b61e964e1f");
}

TEST_CASE("a chunk's digest is that of its blocks' digests", "[memory]") {
  const auto bytes = Bytes(2 * kDigestBlockBytes + 3);
  const std::span all(bytes);
  std::vector<std::byte> joined;
  for (const auto& block : {all.first(kDigestBlockBytes),
                            all.subspan(kDigestBlockBytes, kDigestBlockBytes), all.last(3)}) {
    const BlockDigest digest = DigestBlock(block);
    const auto digest_bytes = std::as_bytes(std::span(digest));
    joined.insert(joined.end(), digest_bytes.begin(), digest_bytes.end());
  }
  REQUIRE(DigestChunk(all) == Hex(DigestBlock(joined)));
  // Also where there is one block only: no length has a digest of another kind.
  const BlockDigest one = DigestBlock(all.first(100));
  REQUIRE(DigestChunk(all.first(100)) == Hex(DigestBlock(std::as_bytes(std::span(one)))));
}

TEST_CASE("one flipped bit anywhere changes the digest", "[memory]") {
  auto bytes = Bytes(100'000);
  std::set<std::string> seen = {DigestChunk(bytes)};
  for (std::size_t i = 0; i < bytes.size(); i += 997) {
    bytes[i] ^= std::byte{1};
    REQUIRE(seen.insert(DigestChunk(bytes)).second);
    bytes[i] ^= std::byte{1};
  }
}

TEST_CASE("chunk ranges cover the arena, the last one cut to size", "[memory]") {
  REQUIRE(ChunkRangeOf(0, 10, 4) == ChunkRange{0, 4});
  REQUIRE(ChunkRangeOf(2, 10, 4) == ChunkRange{8, 2});
  REQUIRE(ChunkRangeOf(1, 8, 4) == ChunkRange{4, 4});
}

TEST_CASE("an arena's digests do not depend on the number of threads", "[memory]") {
  const auto bytes = Bytes(1'000'003);
  const auto one = DigestChunks(bytes, 65536, 1);
  const auto four = DigestChunks(bytes, 65536, 4);
  REQUIRE(one.ok());
  REQUIRE(*one == *four);
  REQUIRE(one->size() == 16);
  for (std::size_t i = 0; i < one->size(); ++i) {
    const auto range = ChunkRangeOf(i, bytes.size(), 65536);
    REQUIRE((*one)[i] == DigestChunk(std::span(bytes).subspan(range.offset, range.bytes)));
  }
}

TEST_CASE("digesting stops when it is cancelled", "[memory]") {
  const auto bytes = Bytes(1 << 20);
  const std::atomic<bool> cancel{true};
  const auto digests = DigestChunks(bytes, 4096, 2, &cancel);
  REQUIRE_FALSE(digests.ok());
  REQUIRE(digests.status().code() == StatusCode::kCancelled);
}

TEST_CASE("a manifest for another arena or without all digests is refused", "[memory]") {
  WeightManifest manifest;
  manifest.rank = 3;
  manifest.arena_bytes = 100;
  manifest.chunk_bytes = 64;
  REQUIRE(CheckManifest(manifest, 100, false).ok());
  REQUIRE_THAT(CheckManifest(manifest, 101, false).message(),
               Catch::Contains("rank 3") && Catch::Contains("100") && Catch::Contains("101"));
  REQUIRE_THAT(CheckManifest(manifest, 100, true).message(),
               Catch::Contains("0 chunks, expected 2"));
  manifest.chunk_digests.assign(2, std::string(32, '0'));
  REQUIRE(CheckManifest(manifest, 100, true).ok());
  manifest.chunk_bytes = 0;
  REQUIRE(CheckManifest(manifest, 100, true).code() == StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace rouse::memory
