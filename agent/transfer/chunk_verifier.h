// Compares the digests of what arrived with a manifest's, and counts. Private to agent/transfer.

#pragma once

#include <algorithm>
#include <string>

#include "agent/memory/copy_engine.h"
#include "agent/transfer/pull.h"
#include "common/manifest.h"

namespace rouse::transfer {

class ChunkVerifier {
 public:
  /// `manifest` fits the arena (memory::CheckManifest) and outlives the verifier.
  explicit ChunkVerifier(const WeightManifest& manifest) : manifest_(manifest) {
    counters_.bytes_total = manifest.arena_bytes;
    counters_.chunks_total = manifest.chunk_digests.size();
  }

  const PullCounters& counters() const { return counters_; }

  /// DataLoss names the chunk.
  Status operator()(const memory::Piece& piece) {
    const std::uint64_t blocks_a_chunk = manifest_.chunk_bytes / memory::kDigestBlockBytes;
    counters_.bytes_arrived += piece.bytes;
    std::uint64_t chunk = piece.offset / manifest_.chunk_bytes;
    for (std::uint64_t at = 0; at < piece.blocks.size(); at += blocks_a_chunk, ++chunk) {
      const auto blocks =
          piece.blocks.subspan(at, std::min(blocks_a_chunk, piece.blocks.size() - at));
      if (memory::DigestOfBlocks(blocks) != manifest_.chunk_digests[chunk]) {
        ++counters_.mismatches;
        return DataLoss("chunk " + std::to_string(chunk) + " of rank " +
                        std::to_string(manifest_.rank) + " is not what its digest says");
      }
      ++counters_.chunks_verified;
    }
    counters_.bytes_verified += piece.bytes;
    return {};
  }

 private:
  const WeightManifest& manifest_;
  PullCounters counters_;
};

}  // namespace rouse::transfer
