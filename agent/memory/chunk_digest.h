// Digests of an arena's chunks, in the canonical big-endian form of XXH3-128, 32 hex digits.
//
// A chunk's digest is the XXH3-128 of the digests of its 64 KiB blocks, so that a GPU, which is
// slow at one long hash, can take thousands of short ones at a time (agent/cuda/digest.h) and get
// the same result.
//
// They find bytes that were damaged on the way or in memory; they are no defence against somebody
// who can choose the bytes, who would have to be kept out by the channel that carries the manifest.
//
// Pure.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "common/manifest.h"
#include "common/result.h"

namespace rouse::memory {

struct ChunkRange {
  std::uint64_t offset = 0;  ///< Bytes from the start of the arena.
  std::uint64_t bytes = 0;

  bool operator==(const ChunkRange&) const = default;
};

/// Bytes [i·chunk_bytes, min((i+1)·chunk_bytes, arena_bytes)).
ChunkRange ChunkRangeOf(std::uint64_t chunk, std::uint64_t arena_bytes, std::uint64_t chunk_bytes);

inline constexpr std::uint64_t kDigestBlockBytes = 64u << 10;

/// A block's digest in the canonical form of XXH3-128.
using BlockDigest = std::array<unsigned char, 16>;

BlockDigest DigestBlock(std::span<const std::byte> block);

/// The digest of a chunk from those of its blocks, as a manifest holds it: 32 lower-case hex
/// digits.
std::string DigestOfBlocks(std::span<const BlockDigest> blocks);

/// The digest of a chunk from its bytes.
std::string DigestChunk(std::span<const std::byte> bytes);

/// Whether a (decoded, hence consistent) manifest describes an arena of `arena_bytes`; with
/// `with_digests` it must also bring the digest of every chunk. InvalidArgument says what differs.
Status CheckManifest(const WeightManifest& manifest, std::uint64_t arena_bytes, bool with_digests);

}  // namespace rouse::memory
