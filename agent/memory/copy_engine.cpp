#include "agent/memory/copy_engine.h"

#include <algorithm>

namespace rouse::memory {

Status ForEachChunk(
    const Piece& piece, std::uint64_t chunk_bytes,
    const std::function<Status(std::uint64_t chunk, const std::string& digest)>& on_chunk) {
  const std::uint64_t blocks_a_chunk = ChunkCount(chunk_bytes, kDigestBlockBytes);
  std::uint64_t chunk = piece.offset / chunk_bytes;
  for (std::uint64_t at = 0; at < piece.blocks.size(); at += blocks_a_chunk, ++chunk) {
    const std::uint64_t blocks = std::min(blocks_a_chunk, piece.blocks.size() - at);
    ROUSE_RETURN_IF_ERROR(on_chunk(chunk, DigestOfBlocks(piece.blocks.subspan(at, blocks))));
  }
  return {};
}

Result<std::vector<std::string>> DigestChunks(CopyEngine& engine, const Arena& arena,
                                              const CopyOptions& options) {
  std::vector<std::string> digests;
  const auto take = [&](const Piece& piece) {
    return ForEachChunk(piece, options.chunk_bytes,
                        [&](std::uint64_t chunk, const std::string& digest) -> Status {
                          digests[chunk] = digest;
                          return {};
                        });
  };
  if (options.chunk_bytes != 0) digests.resize(ChunkCount(arena.bytes(), options.chunk_bytes));
  ROUSE_RETURN_IF_ERROR(engine.Digest(arena, options, take));
  return digests;
}

}  // namespace rouse::memory
