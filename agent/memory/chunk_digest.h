// Digests of an arena's chunks: XXH3-128, in the canonical big-endian form, 32 hex digits.
//
// They find bytes that were damaged on the way or in memory; they are no defence against somebody
// who can choose the bytes, who would have to be kept out by the channel that carries the manifest.
//
// Pure, but for the threads that DigestChunks starts and joins.

#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

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

/// The digest as a manifest holds it: 32 lower-case hex digits.
std::string DigestChunk(std::span<const std::byte> bytes);

/// The digest of every chunk of `arena`, by `threads` threads (at least one). Cancelled when
/// `cancel` is given and becomes true.
Result<std::vector<std::string>> DigestChunks(std::span<const std::byte> arena,
                                              std::uint64_t chunk_bytes, int threads,
                                              const std::atomic<bool>* cancel = nullptr);

/// Whether a (decoded, hence consistent) manifest describes an arena of `arena_bytes`; with
/// `with_digests` it must also bring the digest of every chunk. InvalidArgument says what differs.
Status CheckManifest(const WeightManifest& manifest, std::uint64_t arena_bytes, bool with_digests);

}  // namespace rouse::memory
