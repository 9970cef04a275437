#include "agent/transfer/node_pull.h"

#include <poll.h>

#include <algorithm>
#include <vector>

#include "agent/memory/chunk_digest.h"
#include "agent/socket/seqpacket.h"
#include "agent/transfer/node_protocol.h"

namespace rouse::transfer {
namespace {

using Clock = std::chrono::steady_clock;
using memory::OwnedFd;
using std::chrono::milliseconds;

/// Of all slabs but the last; nullopt when they differ.
std::optional<std::uint64_t> CommonSize(const std::vector<RemoteSlab>& slabs) {
  for (std::size_t i = 0; i < slabs.size(); ++i) {
    const bool last = i + 1 == slabs.size();
    if (last ? slabs[i].bytes > slabs[0].bytes : slabs[i].bytes != slabs[0].bytes) {
      return std::nullopt;
    }
  }
  return slabs.empty() ? std::nullopt : std::optional(slabs[0].bytes);
}

Result<agent::SeqpacketMessage> AwaitMessage(int socket, Clock::time_point until) {
  for (;;) {
    const auto left = std::chrono::ceil<milliseconds>(until - Clock::now());
    if (left.count() <= 0) return DeadlineExceeded("no answer in time");
    pollfd polled{socket, POLLIN, 0};
    ::poll(&polled, 1, static_cast<int>(left.count()));
    ROUSE_ASSIGN_OR_RETURN(auto message, agent::SeqpacketReceive(socket));
    if (message) return *std::move(message);
  }
}

Result<std::vector<OwnedFd>> Ask(int socket, const NodeRequest& request,
                                 const memory::Memory& memory, Clock::time_point until) {
  // The socket's buffer is empty: request and answer alternate.
  ROUSE_ASSIGN_OR_RETURN(const bool sent,
                         agent::SeqpacketSend(socket, json::Dump(ToJson(request)), {}));
  if (!sent) return Unavailable("it does not read");
  ROUSE_ASSIGN_OR_RETURN(agent::SeqpacketMessage message, AwaitMessage(socket, until));
  if (message.oversized) return InvalidArgument("its answer is over the protocol's bounds");
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
  const auto slab_bytes = CommonSize(rank.slabs);
  if (!slab_bytes) return InvalidArgument(what + ": they are of different sizes");
  auto socket = agent::SeqpacketDial(source.socket, true);
  if (!socket.ok()) return Unavailable(what + ": " + socket.status().message());
  const Clock::time_point until = Clock::now() + deadline;
  std::vector<OwnedFd> fds;
  while (fds.size() < rank.slabs.size()) {
    const std::size_t count = std::min(rank.slabs.size() - fds.size(), agent::kMaxMessageFds);
    auto more =
        Ask(socket->get(), {source.lease, rank.manifest.rank, fds.size(), count}, *memory, until);
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
                                std::stop_token stop, const ProgressCallback& on_progress) {
  const std::string what = "copy from " + source.name;
  ROUSE_RETURN_IF_ERROR(memory::CheckManifest(manifest, to.bytes(), true).WithContext(what));
  const Clock::time_point started = Clock::now();
  const auto elapsed = [&] {
    return std::chrono::duration<double>(Clock::now() - started).count();
  };
  PullReport report;
  report.transport = "node/" + to.memory().name();
  report.counters.bytes_total = manifest.arena_bytes;
  report.counters.chunks_total = manifest.chunk_digests.size();
  const auto verify = [&](const memory::Piece& piece) -> Status {
    const std::uint64_t blocks_a_chunk = manifest.chunk_bytes / memory::kDigestBlockBytes;
    report.counters.bytes_arrived += piece.bytes;
    std::uint64_t chunk = piece.offset / manifest.chunk_bytes;
    for (std::uint64_t at = 0; at < piece.blocks.size(); at += blocks_a_chunk, ++chunk) {
      const auto blocks =
          piece.blocks.subspan(at, std::min(blocks_a_chunk, piece.blocks.size() - at));
      if (memory::DigestOfBlocks(blocks) != manifest.chunk_digests[chunk]) {
        ++report.counters.mismatches;
        return DataLoss("chunk " + std::to_string(chunk) + " of rank " +
                        std::to_string(manifest.rank) + " is not what its digest says");
      }
      ++report.counters.chunks_verified;
    }
    report.counters.bytes_verified += piece.bytes;
    if (on_progress) on_progress({.counters = report.counters, .seconds = elapsed()});
    return {};
  };
  ROUSE_RETURN_IF_ERROR(engine
                            .Copy(from, to,
                                  {.chunk_bytes = manifest.chunk_bytes,
                                   .progress_deadline = options.progress_deadline,
                                   .stop = std::move(stop)},
                                  verify)
                            .WithContext(what));
  report.seconds = elapsed();
  return report;
}

}  // namespace rouse::transfer
