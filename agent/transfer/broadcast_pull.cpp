#include "agent/transfer/broadcast_pull.h"

#include <algorithm>

#include "agent/memory/chunk_digest.h"
#include "agent/transfer/chunk_verifier.h"
#include "agent/transfer/node_client.h"
#include "agent/transfer/node_protocol.h"
#include "common/log.h"
#include "common/stoppable_sleep.h"

namespace rouse::transfer {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

Status Cancelled() {
  return Status(StatusCode::kCancelled, "waiting for a seat was cancelled");
}

Result<PullReport> TakePart(const NodeSource& source, const WeightManifest& manifest,
                            memory::Arena& to, memory::CopyEngine& engine,
                            memory::Broadcaster& broadcaster, const BroadcastPullOptions& options,
                            const std::stop_token& stop, const ProgressCallback& on_progress) {
  const Clock::time_point started = Clock::now();
  ROUSE_RETURN_IF_ERROR(memory::CheckManifest(manifest, to.bytes(), true));
  ROUSE_ASSIGN_OR_RETURN(
      const memory::BroadcastSeat seat,
      AwaitSeat(source, manifest.rank, options.self, options.node_deadline, stop));
  memory::BroadcastOptions broadcast = options.broadcast;
  broadcast.stop = stop;
  ROUSE_RETURN_IF_ERROR(broadcaster.Receive(seat, to, broadcast).status());
  ChunkVerifier verifier(manifest);
  ROUSE_RETURN_IF_ERROR(engine.Digest(to,
                                      {.chunk_bytes = manifest.chunk_bytes,
                                       .progress_deadline = options.pull.progress_deadline,
                                       .stop = stop},
                                      std::ref(verifier)));
  const double seconds = std::chrono::duration<double>(Clock::now() - started).count();
  if (on_progress) on_progress({.counters = verifier.counters(), .seconds = seconds});
  return PullReport{.counters = verifier.counters(),
                    .seconds = seconds,
                    .transport = "broadcast/" + to.memory().name()};
}

}  // namespace

Result<memory::BroadcastSeat> AwaitSeat(const NodeSource& source, std::uint32_t rank,
                                        const BroadcastMember& self, milliseconds deadline,
                                        const std::stop_token& stop) {
  const std::string what = "a seat in a broadcast of " + source.name;
  const Clock::time_point until = Clock::now() + deadline;
  const auto client = NodeClient::Dial(source.socket);
  if (!client.ok()) return client.status().WithContext(what);
  const json::Json question = ToJson(NodeJoin{source.lease, rank, self});
  while (!stop.stop_requested()) {
    const auto message = client->Ask(question, until);
    if (!message.ok()) return message.status().WithContext(what);
    const auto answer = DecodeNodeJoinAnswer(message->body);
    if (!answer.ok()) return answer.status().WithContext(what);
    if (const auto* seat = std::get_if<memory::BroadcastSeat>(&*answer)) return *seat;
    if (const auto* pull = std::get_if<JoinPull>(&*answer)) return FailedPrecondition(pull->reason);
    const auto left = std::chrono::duration_cast<milliseconds>(until - Clock::now());
    if (left.count() <= 0) return DeadlineExceeded(what + ": still to wait");
    SleepUntil(Clock::now() + std::min(std::get<JoinWait>(*answer).time, left), stop);
  }
  return Cancelled();
}

Result<PullReport> FetchFromNode(const NodeSource& source, const RemoteRank& rank,
                                 memory::Arena& to, std::shared_ptr<const memory::Memory> memory,
                                 memory::CopyEngine& engine, memory::Broadcaster* broadcaster,
                                 const BroadcastPullOptions& options, const std::stop_token& stop,
                                 const ProgressCallback& on_progress, Availability* available) {
  const Clock::time_point started = Clock::now();
  if (broadcaster != nullptr) {
    auto report =
        TakePart(source, rank.manifest, to, engine, *broadcaster, options, stop, on_progress);
    // Bytes that were wrong after a broadcast may be right by a pull, which is verified too.
    if (report.ok() && available != nullptr) {
      for (std::uint64_t i = 0; i < rank.manifest.chunk_digests.size(); ++i) available->Set(i);
    }
    if (report.ok() || stop.stop_requested()) return report;
    if (report.status().code() == StatusCode::kFailedPrecondition) {
      log::Info("pulling without a broadcast",
                {{"peer", source.name}, {"reason", report.status().message()}});
    } else {
      log::Warning("broadcast failed; pulling",
                   {{"peer", source.name}, {"error", report.status().ToString()}});
    }
  }
  ROUSE_ASSIGN_OR_RETURN(const auto from,
                         ImportFromNode(source, rank, std::move(memory), options.node_deadline));
  ROUSE_ASSIGN_OR_RETURN(PullReport report,
                         CopyFromNode(source, rank.manifest, *from, to, engine, options.pull, stop,
                                      on_progress, available));
  report.seconds = std::chrono::duration<double>(Clock::now() - started).count();
  return report;
}

}  // namespace rouse::transfer
