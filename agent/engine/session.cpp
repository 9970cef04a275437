#include "agent/engine/session.h"

namespace rouse::agent {
namespace {

std::string Joined(const std::vector<std::string>& lines) {
  std::string all;
  for (const std::string& line : lines) all += (all.empty() ? "" : "; ") + line;
  return all;
}

std::optional<std::uint32_t> RankOf(const EngineRequest& request) {
  return std::visit(
      [](const auto& body) -> std::optional<std::uint32_t> {
        if constexpr (requires { body.rank; }) return body.rank;
        return std::nullopt;
      },
      request);
}

bool OfCommands(const EngineRequest& request) {
  return std::holds_alternative<AttachRequest>(request) ||
         std::holds_alternative<AwaitCommandRequest>(request) ||
         std::holds_alternative<CommandDoneRequest>(request);
}

}  // namespace

std::optional<Status> EngineSession::OutOfTurn(const EngineRequest& request) const {
  const std::string name(TypeName(request));
  if (OfCommands(request)) {
    return FailedPrecondition(name + ": commands have a connection of their own, begin with " +
                              (hello_ ? "a new one" : "Attach"));
  }
  if (std::holds_alternative<HelloRequest>(request)) {
    if (hello_) return FailedPrecondition("Hello came twice on one connection");
    return std::nullopt;
  }
  if (std::holds_alternative<HeldMemoryRequest>(request) ||
      std::holds_alternative<CacheUseRequest>(request)) {
    return std::nullopt;
  }
  if (!hello_) return FailedPrecondition(name + " before Hello: begin the connection with Hello");
  if (const auto rank = RankOf(request); rank && *rank != hello_->rank) {
    return InvalidArgument("rank: " + name + " names rank " + std::to_string(*rank) +
                           ", this connection is rank " + std::to_string(hello_->rank));
  }
  if (std::holds_alternative<AwaitWeightsRequest>(request) && !from_peer_) {
    return FailedPrecondition("AwaitWeights, but this connection's Welcome did not say Peer");
  }
  if (std::holds_alternative<GetSlabsRequest>(request) && !holds_arena_) {
    return FailedPrecondition("GetSlabs before AwaitWeights or CreateArena has been answered");
  }
  if (std::holds_alternative<PublishRequest>(request) && !may_publish_) {
    return FailedPrecondition(
        "Publish without an arena that this connection created and has not "
        "published yet: send CreateArena first");
  }
  if (const auto* publish = std::get_if<PublishRequest>(&request);
      publish != nullptr && publish->placeholders && !begins_without_) {
    return FailedPrecondition("placeholders: this connection's Welcome did not say Nowhere");
  }
  if (std::holds_alternative<ReleaseArenaRequest>(request) && (!holds_arena_ || may_publish_)) {
    return FailedPrecondition(
        "ReleaseArena without an arena whose weights were delivered or published");
  }
  if (std::holds_alternative<AwaitArenaRequest>(request) && !released_) {
    return FailedPrecondition("AwaitArena before ReleaseArena");
  }
  if (std::holds_alternative<OpenStreamRequest>(request) && streams_) {
    return FailedPrecondition("OpenStream before the last stream was closed");
  }
  if ((std::holds_alternative<NextBatchRequest>(request) ||
       std::holds_alternative<CloseStreamRequest>(request)) &&
      !streams_) {
    return FailedPrecondition(name + " without a stream: send OpenStream first");
  }
  return std::nullopt;
}

void EngineSession::OnWeightsDelivered() {
  holds_arena_ = true;
  released_ = false;
}

void EngineSession::OnArenaCreated() {
  holds_arena_ = true;
  may_publish_ = true;
  released_ = false;
}

void EngineSession::OnReleased() {
  holds_arena_ = false;
  released_ = true;
}

// From here on its weights are what a peer sends, wherever its first ones came from.
void EngineSession::OnArenaDelivered() {
  holds_arena_ = true;
  from_peer_ = true;
}

EngineStep EngineSession::OnRequest(const Result<EngineRequest>& request,
                                    const WeightOffer& offer) {
  Status problem = request.status();
  if (problem.ok()) problem = OutOfTurn(*request).value_or(Status());
  if (problem.ok()) {
    const bool from_storage = std::holds_alternative<CreateArenaRequest>(*request) ||
                              std::holds_alternative<OpenStreamRequest>(*request);
    if (from_storage && !offer.storage_allowed) {
      problem = FailedPrecondition(std::string(TypeName(*request)) +
                                   ": loading from storage is not allowed for this "
                                   "instance (weights fallback None)");
    }
  }
  if (!problem.ok()) {
    // Two programs that do not fit have nothing more to say to each other.
    const bool stranger = problem.code() == StatusCode::kFailedPrecondition && !hello_;
    return step::Reply{ErrorReply(problem), stranger || ++errors_ >= kMaxSessionErrors};
  }
  return std::visit(
      [&](const auto& body) -> EngineStep {
        using Body = std::decay_t<decltype(body)>;
        if constexpr (std::is_same_v<Body, HelloRequest>) return OnHello(body, offer);
        if constexpr (std::is_same_v<Body, PhaseRequest>) return step::RecordPhase{body};
        if constexpr (std::is_same_v<Body, AwaitWeightsRequest>) return step::AwaitWeights{body};
        if constexpr (std::is_same_v<Body, CreateArenaRequest>) return step::CreateArena{body};
        if constexpr (std::is_same_v<Body, GetSlabsRequest>) return step::SendSlabs{body};
        if constexpr (std::is_same_v<Body, PublishRequest>) return step::Publish{body};
        if constexpr (std::is_same_v<Body, OpenStreamRequest>) return step::OpenStream{body};
        if constexpr (std::is_same_v<Body, NextBatchRequest>) return step::NextBatch{body};
        if constexpr (std::is_same_v<Body, CloseStreamRequest>) return step::CloseStream{body};
        if constexpr (std::is_same_v<Body, ReleaseArenaRequest>) return step::ReleaseArena{body};
        if constexpr (std::is_same_v<Body, AwaitArenaRequest>) return step::AwaitArena{body};
        if constexpr (std::is_same_v<Body, HeldMemoryRequest>) return step::TellHeld{body};
        if constexpr (std::is_same_v<Body, CacheUseRequest>) return step::NoteCacheUse{body};
        return step::Reply{ErrorReply(Internal("unexpected request"))};
      },
      *request);
}

EngineStep EngineSession::OnHello(const HelloRequest& hello, const WeightOffer& offer) {
  std::string reason = offer.reason;
  if (offer.identity) {
    const auto differences = IdentityDifferences(hello.identity, *offer.identity);
    if (differences.empty()) {
      hello_ = hello;
      from_peer_ = true;
      return step::Welcome{hello, WeightsFrom::kPeer, WelcomeReply(WeightsFrom::kPeer, reason)};
    }
    reason =
        "the weights at hand (" + offer.reason + ") have another identity: " + Joined(differences);
  }
  if (!offer.storage_allowed) {
    reason += "; loading from storage is not allowed (weights fallback None)";
    return step::Refuse{hello, reason, ErrorReply(FailedPrecondition(reason))};
  }
  hello_ = hello;
  begins_without_ = offer.begin_without;
  const WeightsFrom from = begins_without_ ? WeightsFrom::kNowhere : WeightsFrom::kStorage;
  return step::Welcome{hello, from, WelcomeReply(from, reason)};
}

}  // namespace rouse::agent
