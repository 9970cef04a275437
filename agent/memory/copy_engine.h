// What moves weights between arenas of one node, and digests them where they lie.
//
// Blocking; an engine belongs to one thread at a time.

#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <stop_token>
#include <string>
#include <vector>

#include "agent/memory/arena.h"
#include "agent/memory/chunk_digest.h"
#include "common/result.h"

namespace rouse::memory {

/// A part of an arena that is in its place, and the digests of its blocks (kDigestBlockBytes each,
/// the last one of the arena cut to what is left), read from that place. Offset and bytes are
/// multiples of the chunk size, but for the arena's end.
struct Piece {
  std::uint64_t offset = 0;
  std::uint64_t bytes = 0;
  std::span<const BlockDigest> blocks;
};

/// Called on the caller's thread, for each piece once, in any order. A failure ends the operation
/// with that status.
using OnPiece = std::function<Status(const Piece&)>;

struct CopyOptions {
  /// A device's engine takes multiples of kDigestBlockBytes only (InvalidArgument).
  std::uint64_t chunk_bytes = 4u << 20;
  /// Longest time without any piece: a device that hangs gives neither completion nor error.
  std::chrono::milliseconds progress_deadline{10'000};
  std::stop_token stop;
  /// False: pieces come without digests, and nothing is verified. For measuring what verification
  /// costs.
  bool digest = true;
};

class CopyEngine {
 public:
  virtual ~CopyEngine() = default;

  /// Copies all of `from` into `to`, of the same size. Returns, whatever the outcome, only when no
  /// byte of `to` will be written any more.
  ///
  /// Errors: InvalidArgument, Cancelled, DeadlineExceeded, what `on_piece` returned, or the
  /// device's.
  virtual Status Copy(const Arena& from, Arena& to, const CopyOptions& options,
                      const OnPiece& on_piece) = 0;

  /// Only takes the digests.
  virtual Status Digest(const Arena& arena, const CopyOptions& options,
                        const OnPiece& on_piece) = 0;
};

/// Calls `on_chunk` with the number and the digest of each chunk that `piece` is made of, in order.
/// The piece has its blocks' digests, of a copy with this `chunk_bytes`.
Status ForEachChunk(
    const Piece& piece, std::uint64_t chunk_bytes,
    const std::function<Status(std::uint64_t chunk, const std::string& digest)>& on_chunk);

/// The digests of all chunks of `arena`, as a manifest holds them. Errors: CopyEngine::Digest's.
Result<std::vector<std::string>> DigestChunks(CopyEngine& engine, const Arena& arena,
                                              const CopyOptions& options = {});

/// For arenas in host memory, with `threads` threads of its own in each call.
std::unique_ptr<CopyEngine> HostCopyEngine(int threads);

}  // namespace rouse::memory
