#include "agent/transfer/node_pull.h"

#include <algorithm>
#include <vector>

#include "agent/memory/chunk_digest.h"
#include "agent/transfer/chunk_verifier.h"
#include "agent/transfer/node_client.h"
#include "agent/transfer/node_protocol.h"
#include "common/round_up.h"

namespace rouse::transfer {
namespace {

using Clock = std::chrono::steady_clock;
using memory::OwnedFd;
using std::chrono::milliseconds;

/// What the arena is cut at, the size of all slabs but the last; nullopt when they differ. An only
/// slab is as short as its content, and does not tell: any cut that holds it will do.
std::optional<std::uint64_t> CutOf(const std::vector<RemoteSlab>& slabs,
                                   const memory::Memory& memory) {
  for (std::size_t i = 0; i < slabs.size(); ++i) {
    const bool last = i + 1 == slabs.size();
    if (last ? slabs[i].bytes > slabs[0].bytes : slabs[i].bytes != slabs[0].bytes) {
      return std::nullopt;
    }
  }
  if (slabs.empty()) return std::nullopt;
  if (slabs.size() > 1) return slabs[0].bytes;
  return RoundUp(RoundUp(slabs[0].bytes, memory.granularity()), kChunkBytes);
}

Result<std::vector<OwnedFd>> Ask(const NodeClient& client, const NodeRequest& request,
                                 const memory::Memory& memory, Clock::time_point until) {
  ROUSE_ASSIGN_OR_RETURN(agent::SeqpacketMessage message, client.Ask(ToJson(request), until));
  ROUSE_ASSIGN_OR_RETURN(const NodeAnswer answer, DecodeNodeAnswer(message.body));
  const std::string here = memory.on_host() ? "host" : "cuda";
  if (answer.memory != here) {
    return FailedPrecondition("its slabs are in memory of " + answer.memory + ", ours of " + here);
  }
  if (message.fds.size() != request.count) {
    return InvalidArgument("it sent " + std::to_string(message.fds.size()) + " descriptors for " +
                           std::to_string(request.count) + " slabs");
  }
  return std::move(message.fds);
}

}  // namespace

Result<std::unique_ptr<memory::Arena>> ImportFromNode(const NodeSource& source,
                                                      const RemoteRank& rank,
                                                      std::shared_ptr<const memory::Memory> memory,
                                                      milliseconds deadline) {
  const std::string what = "slabs of " + source.name + " at " + source.socket;
  const auto slab_bytes = CutOf(rank.slabs, *memory);
  if (!slab_bytes) return InvalidArgument(what + ": they are of different sizes");
  const auto client = NodeClient::Dial(source.socket);
  if (!client.ok()) return client.status().WithContext(what);
  const Clock::time_point until = Clock::now() + deadline;
  std::vector<OwnedFd> fds;
  while (fds.size() < rank.slabs.size()) {
    const std::size_t count = std::min(rank.slabs.size() - fds.size(), agent::kMaxMessageFds);
    auto more = Ask(*client, {source.lease, rank.manifest.rank, fds.size(), count}, *memory, until);
    if (!more.ok()) return more.status().WithContext(what);
    std::move(more->begin(), more->end(), std::back_inserter(fds));
  }
  auto arena = memory::Arena::Import({.bytes = rank.manifest.arena_bytes,
                                      .memory = std::move(memory),
                                      .slab_bytes = *slab_bytes,
                                      .name = source.name},
                                     std::move(fds));
  if (!arena.ok()) return arena.status().WithContext(what);
  return arena;
}

Result<PullReport> CopyFromNode(const NodeSource& source, const WeightManifest& manifest,
                                const memory::Arena& from, memory::Arena& to,
                                memory::CopyEngine& engine, const PullOptions& options,
                                std::stop_token stop, const ProgressCallback& on_progress,
                                Availability* available) {
  const std::string what = "copy from " + source.name;
  ROUSE_RETURN_IF_ERROR(memory::CheckManifest(manifest, to.bytes(), true).WithContext(what));
  const Clock::time_point started = Clock::now();
  const auto elapsed = [&] {
    return std::chrono::duration<double>(Clock::now() - started).count();
  };
  ChunkVerifier verifier(manifest);
  const auto verify = [&](const memory::Piece& piece) -> Status {
    ROUSE_RETURN_IF_ERROR(verifier(piece));
    if (available != nullptr) {
      const std::uint64_t first = piece.offset / manifest.chunk_bytes;
      const std::uint64_t count = ChunkCount(piece.bytes, manifest.chunk_bytes);
      for (std::uint64_t i = 0; i < count; ++i) available->Set(first + i);
    }
    if (on_progress) on_progress({.counters = verifier.counters(), .seconds = elapsed()});
    return {};
  };
  ROUSE_RETURN_IF_ERROR(engine
                            .Copy(from, to,
                                  {.chunk_bytes = manifest.chunk_bytes,
                                   .progress_deadline = options.progress_deadline,
                                   .stop = std::move(stop)},
                                  verify)
                            .WithContext(what));
  return PullReport{.counters = verifier.counters(),
                    .seconds = elapsed(),
                    .transport = "node/" + to.memory().name()};
}

}  // namespace rouse::transfer
