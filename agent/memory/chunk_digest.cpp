#include "agent/memory/chunk_digest.h"

#if defined(__x86_64__)
#include <xxh_x86dispatch.h>  // the same functions, choosing AVX2 or AVX-512 at run time
#else
#include <xxhash.h>
#endif

#include <algorithm>
#include <vector>

namespace rouse::memory {

ChunkRange ChunkRangeOf(std::uint64_t chunk, std::uint64_t arena_bytes, std::uint64_t chunk_bytes) {
  const std::uint64_t offset = chunk * chunk_bytes;
  return {.offset = offset, .bytes = std::min(chunk_bytes, arena_bytes - offset)};
}

BlockDigest DigestBlock(std::span<const std::byte> block) {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, XXH3_128bits(block.data(), block.size()));
  return std::to_array(canonical.digest);
}

std::string DigestOfBlocks(std::span<const BlockDigest> blocks) {
  constexpr char kHex[] = "0123456789abcdef";
  std::string text;
  text.reserve(2 * sizeof(BlockDigest));
  for (const unsigned char byte : DigestBlock(std::as_bytes(blocks))) {
    text.push_back(kHex[byte >> 4]);
    text.push_back(kHex[byte & 15]);
  }
  return text;
}

std::string DigestChunk(std::span<const std::byte> bytes) {
  std::vector<BlockDigest> blocks;
  blocks.reserve(ChunkCount(bytes.size(), kDigestBlockBytes));
  for (std::uint64_t at = 0; at < bytes.size(); at += kDigestBlockBytes) {
    blocks.push_back(
        DigestBlock(bytes.subspan(at, std::min(kDigestBlockBytes, bytes.size() - at))));
  }
  return DigestOfBlocks(blocks);
}

Status CheckManifest(const WeightManifest& manifest, std::uint64_t arena_bytes, bool with_digests) {
  const std::string what = "manifest of rank " + std::to_string(manifest.rank) + ": ";
  if (manifest.arena_bytes != arena_bytes) {
    return InvalidArgument(what + "arenaBytes is " + std::to_string(manifest.arena_bytes) +
                           ", the arena has " + std::to_string(arena_bytes));
  }
  if (manifest.chunk_bytes == 0) return InvalidArgument(what + "chunkBytes is 0");
  const std::uint64_t chunks = ChunkCount(manifest.arena_bytes, manifest.chunk_bytes);
  if (with_digests && manifest.chunk_digests.size() != chunks) {
    return InvalidArgument(what + "has the digests of " +
                           std::to_string(manifest.chunk_digests.size()) + " chunks, expected " +
                           std::to_string(chunks));
  }
  return {};
}

}  // namespace rouse::memory
