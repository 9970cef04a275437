#include "agent/engine/session.h"

namespace rouse::agent {
namespace {

/// A client that gets this many requests wrong is not one of ours.
constexpr int kMaxErrors = 16;

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

}  // namespace

std::optional<Status> EngineSession::OutOfTurn(const EngineRequest& request) const {
  const std::string name(TypeName(request));
  if (std::holds_alternative<HelloRequest>(request)) {
    if (hello_) return FailedPrecondition("Hello came twice on one connection");
    return std::nullopt;
  }
  if (!hello_) return FailedPrecondition(name + " before Hello: begin the connection with Hello");
  if (const auto rank = RankOf(request); rank && *rank != hello_->rank) {
    return InvalidArgument("rank: " + name + " names rank " + std::to_string(*rank) +
                           ", this connection is rank " + std::to_string(hello_->rank));
  }
  if (std::holds_alternative<AwaitWeightsRequest>(request) && !from_peer_) {
    return FailedPrecondition("AwaitWeights, but this connection's Welcome said Storage");
  }
  if (std::holds_alternative<GetSlabsRequest>(request) && !holds_arena_) {
    return FailedPrecondition("GetSlabs before AwaitWeights or CreateArena has been answered");
  }
  if (std::holds_alternative<PublishRequest>(request) && !may_publish_) {
    return FailedPrecondition(
        "Publish without an arena that this connection created and has not "
        "published yet: send CreateArena first");
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

void EngineSession::OnArenaCreated() {
  holds_arena_ = true;
  may_publish_ = true;
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
    return step::Reply{ErrorReply(problem), stranger || ++errors_ >= kMaxErrors};
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
      return step::Welcome{hello, true, WelcomeReply(true, reason)};
    }
    reason =
        "the weights at hand (" + offer.reason + ") have another identity: " + Joined(differences);
  }
  if (!offer.storage_allowed) {
    reason += "; loading from storage is not allowed (weights fallback None)";
    return step::Refuse{hello, reason, ErrorReply(FailedPrecondition(reason))};
  }
  hello_ = hello;
  return step::Welcome{hello, false, WelcomeReply(false, reason)};
}

}  // namespace rouse::agent
