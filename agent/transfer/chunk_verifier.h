// Compares the digests of what arrived with a manifest's, and counts. Private to agent/transfer.

#pragma once

#include <cstdint>
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
    counters_.bytes_arrived += piece.bytes;
    ROUSE_RETURN_IF_ERROR(memory::ForEachChunk(
        piece, manifest_.chunk_bytes,
        [this](std::uint64_t chunk, const std::string& digest) -> Status {
          if (digest != manifest_.chunk_digests[chunk]) {
            ++counters_.mismatches;
            return DataLoss("chunk " + std::to_string(chunk) + " of rank " +
                            std::to_string(manifest_.rank) + " is not what its digest says");
          }
          ++counters_.chunks_verified;
          return {};
        }));
    counters_.bytes_verified += piece.bytes;
    return {};
  }

 private:
  const WeightManifest& manifest_;
  PullCounters counters_;
};

}  // namespace rouse::transfer
