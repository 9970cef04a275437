// Reads a rank that lies in a peer's GPU memory, on another node, into memory of this node's GPU.
//
// What UCX can register on any machine is host memory, so the bytes take two steps: the source
// copies the next part of its arena into a buffer that is registered there (staging.h); we read
// that one-sidedly into a buffer of our own, compare the digest of each chunk, and copy it to its
// place on the GPU. The source fills its other buffer, and our chunks are digested, while the next
// bytes are under way. Host memory: two buffers on either side, whatever the size of the weights.
//
// From one source at a time, which is put aside as a whole when it fails: its copies are made for
// us alone.

#pragma once

#include <functional>
#include <memory>
#include <stop_token>
#include <string>

#include "agent/memory/arena.h"
#include "agent/transfer/pull.h"
#include "agent/ucx/context.h"
#include "common/peer_messages.h"
#include "common/result.h"

namespace rouse::transfer {

/// Asks the source to copy (POST /v1/weights/stage); blocks, on a thread of the pull's own, and
/// ends within PullOptions::progress_deadline.
using AskToStage = std::function<Result<RemoteSlab>(const StageRequest& request)>;

struct StagedSource {
  std::string name;  ///< For messages.
  std::string worker_address;
  std::string lease;
  RemoteRank rank;  ///< CanBeStaged, and checked (CheckSource).
};

/// Blocks on the caller's thread, which drives UCX; digests and copies to `to` run on threads of
/// the pull's own ("pull-digest"). Returns only when no byte of `to` will be written any more,
/// whatever the outcome.
///
/// Errors: what `ask` returned, Unavailable when the connection broke, DeadlineExceeded when
/// nothing moved for options.progress_deadline, DataLoss for a chunk that is not what its digest
/// says, Cancelled, the GPU's.
Result<PullReport> PullStaged(const StagedSource& source, std::shared_ptr<ucx::Context> context,
                              memory::Arena& to, const AskToStage& ask, const PullOptions& options,
                              std::stop_token stop, const ProgressCallback& on_progress = nullptr);

}  // namespace rouse::transfer
