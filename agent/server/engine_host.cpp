// The Agent as the engine's host: called on the engine socket's thread, except where a comment says
// another.

#include <algorithm>

#include "agent/engine/document.h"
#include "agent/server/agent.h"
#include "agent/server/clock.h"
#include "agent/server/rank_name.h"
#include "agent/startup/gpu_fault.h"
#include "common/log.h"

namespace rouse::agent {

WeightOffer Agent::Offer(std::uint32_t rank) {
  engine_asked_ = true;
  // An engine that starts while this instance sleeps would take memory that others use, and one
  // that does when it has failed would serve for nobody.
  if (const RoleStanding role = role_->standing(); role.state != RoleState::kActive) {
    return {.identity = std::nullopt, .reason = role.message, .storage_allowed = false};
  }
  WeightOffer offer = store_->Offer(rank);
  offer.storage_allowed =
      options_.plan.path == StartPath::kStorage || options_.plan.fall_back_to_storage;
  offer.begin_without = options_.plan.begin_without;
  const std::scoped_lock lock(mutex_);
  offer.settled = machine_.settled() || machine_.failed();
  return offer;
}

void Agent::OnRankConnected(const HelloRequest& hello, WeightsFrom from) {
  log::Info("engine rank connected", {{"rank", hello.rank},
                                      {"worldSize", hello.world_size},
                                      {"engine", hello.engine},
                                      {"engineVersion", hello.engine_version},
                                      {"gpu", hello.gpu},
                                      {"source", json::NameOf<WeightsFrom>(from, kWeightsFrom)}});
  if (!hello.spawned.empty()) {
    log::Warning("engine process was spawned, not forked",
                 {{"rank", hello.rank}, {"reason", hello.spawned}});
    metrics_.CountSpawn();
  }
  if (!hello.gpu.empty()) xids_.Add(hello.gpu);
  store_->OnEngine(hello);
  Apply(event::RankConnected{hello.rank, NowUs()});
}

void Agent::OnRankDisconnected(std::uint32_t rank) {
  store_->OnEngineGone(rank);
  stream_->Leave(rank);
  if (up_) {
    role_->Apply(
        role_event::EngineGone{"the engine of " + RankName(rank) + " has ended its connection"});
  }
  Apply(event::RankDisconnected{rank});
}

void Agent::OnRefused(const HelloRequest& hello, const std::string& reason) {
  log::Error("engine refused", {{"rank", hello.rank}, {"reason", reason}});
  if (role_->active()) Apply(event::Failure{reason});
}

void Agent::OnPhase(std::uint32_t rank, const PhaseRequest& phase) {
  const std::int64_t at = std::min(phase.at_us, NowUs());
  log::Info("engine phase",
            {{"rank", rank},
             {"phase", json::NameOf<event::EnginePhase>(phase.phase, kEnginePhases)},
             {"atUs", at}});
  Apply(event::Phase{phase.phase, at});
}

void Agent::OnAnswered(std::string_view type, bool ok) {
  metrics_.CountEngineRequest(type, ok);
}

Result<std::optional<ReadyWeights>> Agent::Weights(std::uint32_t rank) {
  auto weights = store_->Weights(rank);
  if (weights.ok() && *weights) role_->Apply(role_event::WeightsGiven{NowUs()});
  return weights;
}

std::uint64_t Agent::HeldOn(const std::string& gpu) {
  return store_->HeldOn(gpu);
}

Result<ArenaShape> Agent::CreateArena(const HelloRequest& hello, std::uint64_t bytes) {
  return store_->Create(hello, bytes);
}

Result<std::vector<memory::OwnedFd>> Agent::Slabs(std::uint32_t rank, std::size_t first,
                                                  std::size_t count) {
  auto slabs = store_->Slabs(rank, first, count);
  if (slabs.ok()) role_->Apply(role_event::SlabsGiven{NowUs()});
  return slabs;
}

Status Agent::Publish(const HelloRequest& hello, const memory::OwnedFd& manifest,
                      const PublishRequest& request) {
  ROUSE_ASSIGN_OR_RETURN(const std::string text,
                         ReadDocument(manifest.get(), request.manifest_bytes));
  // Before anybody could take them for weights.
  if (request.placeholders) ROUSE_RETURN_IF_ERROR(KeepUnfit(true));
  const auto held = request.placeholders             ? WeightStore::Content::kPlaceholders
                    : stream_->Delivered(hello.rank) ? WeightStore::Content::kReadByAgent
                                                     : WeightStore::Content::kReadByEngine;
  const Status published = store_->Publish(hello, text, held);
  KeepRole();
  ROUSE_RETURN_IF_ERROR(published);
  NotifyWork();
  return Status();
}

Result<std::optional<OpenedStream>> Agent::OpenStream(const HelloRequest& hello,
                                                      const OpenStreamRequest& request) {
  auto opened = stream_->Open(hello, request);
  if (!opened.ok()) OnLoadedByEngine(hello.rank, opened.status().message());
  return opened;
}

Result<std::optional<StreamedBatch>> Agent::NextBatch(const NextBatchRequest& request) {
  return stream_->Next(request);
}

void Agent::CloseStream(const CloseStreamRequest& request) {
  stream_->Close(request.rank);
  if (!request.reason.empty()) OnLoadedByEngine(request.rank, request.reason);
}

void Agent::OnLoadedByEngine(std::uint32_t rank, const std::string& reason) {
  log::Warning("the engine loads the checkpoint by itself", {{"rank", rank}, {"reason", reason}});
  store_->AddTransport("storage/engine (" + reason + ")");
  if (reporter_ != nullptr) reporter_->Changed();
}

// On the watch's thread. A guard that sleeps on such a GPU is as useless as an engine that serves.
void Agent::OnXid(const nvml::XidEvent& event) {
  const std::string fault = FaultOf(event.gpu, event.xid);
  metrics_.CountXid(event.xid);
  log::Error("Xid", {{"gpu", event.gpu}, {"xid", event.xid}, {"fault", fault}});
  if (!fault.empty()) Apply(event::Failure{fault});
}

// On the thread that reads.
void Agent::OnCheckpointRead(const LoadOutcome& outcome) {
  const std::int64_t now = NowUs();
  metrics_.CountStorage(outcome.status.ok(), outcome.bytes, outcome.seconds);
  store_->AddStorageBytes(outcome.bytes);
  if (outcome.status.ok()) {
    log::Info("checkpoint read", {{"bytes", outcome.bytes},
                                  {"seconds", outcome.seconds},
                                  {"way", outcome.way},
                                  {"reason", outcome.reason}});
    store_->AddTransport("storage/" + outcome.way);
  } else {
    log::Warning("checkpoint not read",
                 {{"bytes", outcome.bytes}, {"error", outcome.status.ToString()}});
  }
  {
    const std::scoped_lock lock(mutex_);
    const auto took = static_cast<std::int64_t>(outcome.seconds * 1e6);
    machine_.AddLane({"Read", now - took, now});
    Show();
  }
  if (reporter_ != nullptr) reporter_->Changed();
}

}  // namespace rouse::agent
