#include <algorithm>
#include <catch2/catch.hpp>
#include <cstdio>
#include <set>

#include "agent/memory/copy_engine.h"

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

std::unique_ptr<Arena> Filled(const std::vector<std::byte>& content) {
  auto arena = Arena::Create({.bytes = content.size()});
  REQUIRE(arena.ok());
  std::copy(content.begin(), content.end(), (*arena)->span().begin());
  return *std::move(arena);
}

TEST_CASE("an arena's digests are those of its chunks, whatever the number of threads",
          "[memory]") {
  const auto bytes = Bytes(1'000'003);
  const auto arena = Filled(bytes);
  const std::uint64_t chunk_bytes = GENERATE(8192u, 65536u, 100'000u, 262'144u, 2'000'000u);
  std::vector<std::string> expected;
  for (std::uint64_t i = 0; i < ChunkCount(bytes.size(), chunk_bytes); ++i) {
    const auto range = ChunkRangeOf(i, bytes.size(), chunk_bytes);
    expected.push_back(DigestChunk(std::span(bytes).subspan(range.offset, range.bytes)));
  }
  for (const int threads : {1, 4}) {
    const auto digests =
        DigestChunks(*HostCopyEngine(threads), *arena, {.chunk_bytes = chunk_bytes});
    REQUIRE(digests.ok());
    REQUIRE(*digests == expected);
  }
}

TEST_CASE("a piece of several chunks has the digest of each", "[memory]") {
  const auto bytes = Bytes(7 * 65536 + 10);
  std::vector<BlockDigest> blocks;
  for (std::size_t at = 2 * 65536; at < bytes.size(); at += 65536) {
    blocks.push_back(
        DigestBlock(std::span(bytes).subspan(at, std::min<std::size_t>(65536, bytes.size() - at))));
  }
  const Piece piece{.offset = 2 * 65536, .bytes = bytes.size() - 2 * 65536, .blocks = blocks};
  std::vector<std::pair<std::uint64_t, std::string>> seen;
  const auto remember = [&](std::uint64_t chunk, const std::string& digest) -> Status {
    seen.emplace_back(chunk, digest);
    return {};
  };
  REQUIRE(ForEachChunk(piece, 2 * 65536, remember).ok());
  REQUIRE(seen.size() == 3);
  for (std::uint64_t i = 0; i < 3; ++i) {
    const auto range = ChunkRangeOf(i + 1, bytes.size(), 2 * 65536);
    REQUIRE(seen[i].first == i + 1);
    REQUIRE(seen[i].second == DigestChunk(std::span(bytes).subspan(range.offset, range.bytes)));
  }
  int calls = 0;
  const Status failed = ForEachChunk(piece, 2 * 65536, [&](std::uint64_t, const std::string&) {
    ++calls;
    return DataLoss("enough");
  });
  REQUIRE(failed == DataLoss("enough"));
  REQUIRE(calls == 1);
}

TEST_CASE("digesting stops when it is asked to", "[memory]") {
  const auto arena = Filled(Bytes(1 << 20));
  std::stop_source stop;
  stop.request_stop();
  const auto digests =
      DigestChunks(*HostCopyEngine(2), *arena, {.chunk_bytes = 4096, .stop = stop.get_token()});
  REQUIRE(digests.status().code() == StatusCode::kCancelled);
  REQUIRE(DigestChunks(*HostCopyEngine(2), *arena, {.chunk_bytes = 0}).status().code() ==
          StatusCode::kInvalidArgument);
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
