// One engine rank's conversation, as a pure state machine: a request and what the agent has to
// offer go in, a reply or one thing to do comes out.
//
// Pure: no I/O, no clock. The shell (server.cpp) decodes messages, asks the host for its offer, and
// performs the step. A request that comes out of turn is answered with an error and changes
// nothing.

#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>

#include "agent/engine/protocol.h"

namespace rouse::agent {

/// What the agent has for one rank at this moment.
struct WeightOffer {
  /// The weights that are in place or arriving; absent when there are none for this rank.
  std::optional<Identity> identity;
  /// Where they come from ("pulled from demo-0"), or why there are none.
  std::string reason;
  /// Whether the engine may load from storage instead.
  bool storage_allowed = true;
  /// Whether it shall rather begin without weights: it will sleep, and be woken with a peer's.
  bool begin_without = false;
  /// False while it is not known yet whether there will be weights: a Hello is answered later. It
  /// happens when the agent was started again while its engine ran.
  bool settled = true;
};

/// Things for the shell to do. All but the first two lead to the reply.
namespace step {
/// Send this.
struct Reply {
  json::Json body;
  bool close = false;  ///< And end the conversation.
};
/// The rank is known now (from a Hello that was accepted): tell the host, then send `welcome`.
struct Welcome {
  HelloRequest hello;
  WeightsFrom from = WeightsFrom::kStorage;
  json::Json welcome;
};
/// The engine can have no weights: tell the host why, then send `error`.
struct Refuse {
  HelloRequest hello;
  std::string reason;
  json::Json error;
};
struct RecordPhase {
  PhaseRequest request;
};
struct AwaitWeights {
  AwaitWeightsRequest request;
};
struct CreateArena {
  CreateArenaRequest request;
};
struct SendSlabs {
  GetSlabsRequest request;
};
struct Publish {
  PublishRequest request;
};
struct OpenStream {
  OpenStreamRequest request;
};
struct NextBatch {
  NextBatchRequest request;
};
struct CloseStream {
  CloseStreamRequest request;
};
struct ReleaseArena {
  ReleaseArenaRequest request;
};
struct AwaitArena {
  AwaitArenaRequest request;
};
struct TellHeld {
  HeldMemoryRequest request;
};
struct NoteCacheUse {
  CacheUseRequest request;
};
}  // namespace step

using EngineStep =
    std::variant<step::Reply, step::Welcome, step::Refuse, step::RecordPhase, step::AwaitWeights,
                 step::CreateArena, step::SendSlabs, step::Publish, step::OpenStream,
                 step::NextBatch, step::CloseStream, step::ReleaseArena, step::AwaitArena,
                 step::TellHeld, step::NoteCacheUse>;

/// A client that gets this many requests wrong is not one of ours.
inline constexpr int kMaxSessionErrors = 16;

class EngineSession {
 public:
  /// What to do about a message that was decoded, or could not be (its Status).
  EngineStep OnRequest(const Result<EngineRequest>& request, const WeightOffer& offer);

  /// The shell performed an AwaitWeights, CreateArena, Publish, ReleaseArena or AwaitArena
  /// successfully.
  void OnWeightsDelivered();
  void OnArenaCreated();
  void OnPublished() { may_publish_ = false; }
  void OnReleased();
  void OnArenaDelivered();
  void OnStreamOpened() { streams_ = true; }
  void OnStreamClosed() { streams_ = false; }

  /// The rank of an accepted Hello.
  std::optional<std::uint32_t> rank() const {
    return hello_ ? std::optional(hello_->rank) : std::nullopt;
  }
  const std::optional<HelloRequest>& hello() const { return hello_; }

 private:
  EngineStep OnHello(const HelloRequest& hello, const WeightOffer& offer);
  std::optional<Status> OutOfTurn(const EngineRequest& request) const;

  std::optional<HelloRequest> hello_;
  bool from_peer_ = false;
  bool begins_without_ = false;
  bool holds_arena_ = false;
  bool may_publish_ = false;
  bool released_ = false;  ///< It sleeps, or wakes and has no weights yet.
  bool streams_ = false;
  int errors_ = 0;
};

}  // namespace rouse::agent
