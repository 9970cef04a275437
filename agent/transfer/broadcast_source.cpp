#include "agent/transfer/broadcast_source.h"

#include <pthread.h>

#include "common/log.h"

namespace rouse::transfer {

BroadcastSource::BroadcastSource(std::shared_ptr<const memory::Arena> arena, std::uint32_t rank,
                                 std::unique_ptr<memory::Broadcaster> broadcaster,
                                 const BroadcastSourceOptions& options)
    : arena_(std::move(arena)),
      rank_(rank),
      broadcaster_(std::move(broadcaster)),
      options_(options),
      roster_(options.self, arena_->bytes(), broadcaster_ != nullptr, options.roster) {}

BroadcastSource::~BroadcastSource() = default;

Result<NodeJoinAnswer> BroadcastSource::Join(const NodeJoin& join) {
  if (join.rank != rank_) {
    return NotFound("rank " + std::to_string(join.rank) + " is not broadcast");
  }
  const std::scoped_lock lock(mutex_);
  const auto answer = roster_.Ask(join.lease, join.member, std::chrono::steady_clock::now());
  if (const auto* wait = std::get_if<JoinWait>(&answer)) return NodeJoinAnswer(*wait);
  if (const auto* pull = std::get_if<JoinPull>(&answer)) return NodeJoinAnswer(*pull);
  const auto& seat = std::get<JoinSeat>(answer);
  if (seat.round != round_) {
    round_ = seat.round;
    // The thread of the round before has ended it, so this does not wait for anything.
    thread_ = std::jthread(
        [this, ranks = seat.ranks](std::stop_token stop) { Run(ranks, std::move(stop)); });
  }
  // Making an id may take a while, and whoever asks here must not wait.
  if (!id_) return NodeJoinAnswer(JoinWait{options_.roster.ask_again});
  return NodeJoinAnswer(memory::BroadcastSeat{*id_, seat.ranks, seat.rank});
}

void BroadcastSource::Run(int ranks, std::stop_token stop) {
  ::pthread_setname_np(::pthread_self(), "broadcast");
  memory::BroadcastOptions options = options_.broadcast;
  options.stop = std::move(stop);
  const auto id = broadcaster_->NewId();
  Status status = id.status();
  if (id.ok()) {
    {
      const std::scoped_lock lock(mutex_);
      id_ = *id;
    }
    const auto sent = broadcaster_->Send({*id, ranks, 0}, *arena_, options);
    status = sent.status();
    if (sent.ok()) {
      log::Info("weights broadcast", {{"rank", rank_},
                                      {"targets", ranks - 1},
                                      {"bytes", arena_->bytes()},
                                      {"setupSeconds", sent->setup_seconds},
                                      {"seconds", sent->transfer_seconds}});
    }
  }
  if (!status.ok()) {
    log::Warning("broadcast failed; its targets pull", {{"error", status.ToString()}});
  }
  const std::scoped_lock lock(mutex_);
  id_.reset();
  roster_.EndRound(status.ok() ? "the broadcast has ended"
                               : "the broadcast failed: " + status.message());
}

}  // namespace rouse::transfer
