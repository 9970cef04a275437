// The target's side within a node: maps a peer's slabs and copies from them, on the GPU or by CPU.

#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "agent/memory/copy_engine.h"
#include "agent/transfer/pull.h"
#include "common/peer_messages.h"
#include "common/result.h"

namespace rouse::transfer {

/// Who to ask.
struct NodeSource {
  std::string name;    ///< For messages: "default/demo-0".
  std::string socket;  ///< Path of its NodeShare's socket.
  std::string lease;
};

/// The peer's arena of one rank, mapped to be read, in `memory` (which must be of the same kind).
///
/// Errors: Unavailable when no peer listens there (it is on another node, or its folder is not
/// shared), InvalidArgument when slabs are not as `rank` describes them, DeadlineExceeded.
Result<std::unique_ptr<memory::Arena>> ImportFromNode(const NodeSource& source,
                                                      const RemoteRank& rank,
                                                      std::shared_ptr<const memory::Memory> memory,
                                                      std::chrono::milliseconds deadline);

/// Copies `from` into `to` and compares every chunk with the manifest's digests as it arrives; sets
/// what is verified in `available`, if given.
/// Errors as Pull's; DataLoss names the chunk.
Result<PullReport> CopyFromNode(const NodeSource& source, const WeightManifest& manifest,
                                const memory::Arena& from, memory::Arena& to,
                                memory::CopyEngine& engine, const PullOptions& options,
                                std::stop_token stop, const ProgressCallback& on_progress,
                                Availability* available = nullptr);

}  // namespace rouse::transfer
