// What the engine socket's server answers.

#include "agent/engine/document.h"
#include "agent/engine/server_loop.h"
#include "common/log.h"

namespace rouse::agent {

void EngineServer::Loop::LookAgain(Connection& connection, Clock::time_point now) {
  if (connection.command) return LookForCommand(connection, now);
  if (connection.awaiting && connection.awaiting->arena) return LookForArena(connection, now);
  if (connection.awaiting) return LookForWeights(connection, now);
  if (connection.streaming) return LookForStream(connection, now);
  const WeightOffer offer = host_.Offer(connection.held->hello.rank);
  if (!offer.settled && now < connection.held->until) return;
  std::vector<OwnedFd> none;
  const Result<EngineRequest> hello = EngineRequest(std::move(connection.held->hello));
  connection.held.reset();
  Perform(connection, connection.session.OnRequest(hello, offer), none);
}

void EngineServer::Loop::LookForWeights(Connection& connection, Clock::time_point now) {
  const std::uint32_t rank = connection.awaiting->rank;
  auto weights = host_.Weights(rank);
  if (!weights.ok()) {
    connection.awaiting.reset();
    return SendReply(connection, "AwaitWeights", ErrorReply(weights.status()));
  }
  if (!weights->has_value()) {
    if (now < connection.awaiting->until) return;
    connection.awaiting.reset();
    return SendReply(connection, "AwaitWeights",
                     ErrorReply(DeadlineExceeded("the weights of rank " + std::to_string(rank) +
                                                 " are still on their way: ask again")));
  }
  connection.awaiting.reset();
  const ReadyWeights& ready = **weights;
  auto document = MakeDocument(ready.manifest, "rouse-manifest");
  if (!document.ok()) return SendReply(connection, "AwaitWeights", ErrorReply(document.status()));
  std::vector<OwnedFd> fds;
  fds.push_back(*std::move(document));
  connection.session.OnWeightsDelivered();
  SendReply(connection, "AwaitWeights", WeightsReply(ready.shape, ready.manifest.size()),
            std::move(fds));
}

void EngineServer::Loop::LookForArena(Connection& connection, Clock::time_point now) {
  const auto arena = host_.AwaitArena(connection.awaiting->rank);
  if (arena.ok() && !arena->has_value() && now < connection.awaiting->until) return;
  connection.awaiting.reset();
  if (!arena.ok()) return SendReply(connection, "AwaitArena", ErrorReply(arena.status()));
  if (!arena->has_value()) return SendReply(connection, "AwaitArena", PendingReply());
  connection.session.OnArenaDelivered();
  SendReply(connection, "AwaitArena", ArenaReply(**arena));
}

void EngineServer::Loop::LookForCommand(Connection& connection, Clock::time_point now) {
  const auto command = host_.NextCommand(connection.command->core);
  if (!command && now < *connection.command->awaits) return;
  connection.command->awaits.reset();
  if (!command) return SendReply(connection, "AwaitCommand", PendingReply());
  connection.command->session.OnCommandSent(command->id);
  SendReply(connection, "AwaitCommand", CommandReply(*command));
}

void EngineServer::Loop::AwaitStream(Connection& connection,
                                     std::variant<OpenStreamRequest, NextBatchRequest> request,
                                     std::int64_t timeout_ms) {
  const auto now = Clock::now();
  connection.streaming = Streaming{std::move(request), now + std::chrono::milliseconds(timeout_ms)};
  LookForStream(connection, now);
}

void EngineServer::Loop::LookForStream(Connection& connection, Clock::time_point now) {
  const auto& request = connection.streaming->request;
  const bool opens = std::holds_alternative<OpenStreamRequest>(request);
  const std::string_view type = opens ? "OpenStream" : "NextBatch";
  json::Json reply;
  std::vector<OwnedFd> fds;
  if (opens) {
    auto stream =
        host_.OpenStream(*connection.session.hello(), std::get<OpenStreamRequest>(request));
    if (stream.ok() && stream->has_value()) {
      connection.session.OnStreamOpened();
      Wake();  // Other ranks may have waited for this one.
      reply = StreamReply((*stream)->shape);
      fds = std::move((*stream)->slots);
    } else if (!stream.ok()) {
      reply = ErrorReply(stream.status());
    }
  } else {
    const auto batch = host_.NextBatch(std::get<NextBatchRequest>(request));
    if (!batch.ok()) {
      reply = ErrorReply(batch.status());
    } else if (batch->has_value()) {
      reply = BatchReply(**batch);
    }
  }
  if (reply.is_null()) {
    if (now < connection.streaming->until) return;
    reply = PendingReply();
  }
  connection.streaming.reset();
  SendReply(connection, type, reply, std::move(fds));
}

void EngineServer::Loop::OnMessage(Connection& connection, SeqpacketMessage message) {
  Result<EngineRequest> request =
      message.oversized ? Result<EngineRequest>(Status(
                              StatusCode::kResourceExhausted,
                              "engine request is over " + std::to_string(kMaxMessageBytes) +
                                  " bytes or " + std::to_string(kMaxMessageFds) + " descriptors"))
                        : DecodeEngineRequest(message.body, message.fds.size());
  if (request.ok() && std::holds_alternative<AttachRequest>(*request) &&
      !connection.session.rank() && !connection.command) {
    connection.command.emplace();
  }
  if (connection.command)
    return Perform(connection, connection.command->session.OnRequest(request));
  WeightOffer offer;
  if (request.ok()) {
    const auto* hello = std::get_if<HelloRequest>(&*request);
    offer = host_.Offer(hello != nullptr ? hello->rank : connection.session.rank().value_or(0));
    if (hello != nullptr && !offer.settled && !connection.session.rank()) {
      connection.held = HeldHello{*hello, Clock::now() + limits_.settle_deadline};
      return;
    }
  }
  Perform(connection, connection.session.OnRequest(request, offer), message.fds);
}

void EngineServer::Loop::Perform(Connection& connection, EngineStep step,
                                 std::vector<OwnedFd>& fds) {
  if (auto* reply = std::get_if<step::Reply>(&step)) {
    log::Warning("engine request refused",
                 {{"error", reply->body.value("message", "")}, {"enginePid", connection.pid}});
    SendReply(connection, "Invalid", reply->body, {}, reply->close);
  } else if (auto* welcome = std::get_if<step::Welcome>(&step)) {
    host_.OnRankConnected(welcome->hello, welcome->from);
    SendReply(connection, "Hello", welcome->welcome);
  } else if (auto* refuse = std::get_if<step::Refuse>(&step)) {
    host_.OnRefused(refuse->hello, refuse->reason);
    SendReply(connection, "Hello", refuse->error, {}, true);
  } else if (auto* phase = std::get_if<step::RecordPhase>(&step)) {
    host_.OnPhase(*connection.session.rank(), phase->request);
    SendReply(connection, "Phase", OkReply());
  } else if (auto* await = std::get_if<step::AwaitWeights>(&step)) {
    const auto now = Clock::now();
    connection.awaiting =
        Awaiting{.rank = await->request.rank,
                 .arena = false,
                 .until = now + std::chrono::milliseconds(await->request.timeout_ms)};
    LookForWeights(connection, now);
  } else if (auto* create = std::get_if<step::CreateArena>(&step)) {
    auto shape = host_.CreateArena(*connection.session.hello(), create->request.bytes);
    if (!shape.ok()) return SendReply(connection, "CreateArena", ErrorReply(shape.status()));
    connection.session.OnArenaCreated();
    SendReply(connection, "CreateArena", ArenaReply(*shape));
  } else if (auto* slabs = std::get_if<step::SendSlabs>(&step)) {
    const GetSlabsRequest& wanted = slabs->request;
    auto sent = host_.Slabs(wanted.rank, wanted.first, wanted.count);
    if (!sent.ok()) return SendReply(connection, "GetSlabs", ErrorReply(sent.status()));
    SendReply(connection, "GetSlabs", SlabsReply(wanted.first, wanted.count), *std::move(sent));
  } else if (auto* publish = std::get_if<step::Publish>(&step)) {
    const Status done = host_.Publish(*connection.session.hello(), fds.front(), publish->request);
    if (done.ok()) connection.session.OnPublished();
    SendReply(connection, "Publish", done.ok() ? OkReply() : ErrorReply(done));
  } else if (auto* open = std::get_if<step::OpenStream>(&step)) {
    const std::int64_t timeout_ms = open->request.timeout_ms;
    AwaitStream(connection, std::move(open->request), timeout_ms);
  } else if (auto* next = std::get_if<step::NextBatch>(&step)) {
    AwaitStream(connection, next->request, next->request.timeout_ms);
  } else if (auto* end = std::get_if<step::CloseStream>(&step)) {
    connection.session.OnStreamClosed();
    host_.CloseStream(end->request);
    Wake();
    SendReply(connection, "CloseStream", OkReply());
  } else if (auto* release = std::get_if<step::ReleaseArena>(&step)) {
    const Status released = host_.ReleaseArena(release->request.rank);
    if (released.ok()) connection.session.OnReleased();
    SendReply(connection, "ReleaseArena", released.ok() ? OkReply() : ErrorReply(released));
  } else if (auto* arena = std::get_if<step::AwaitArena>(&step)) {
    const auto now = Clock::now();
    connection.awaiting =
        Awaiting{.rank = arena->request.rank,
                 .arena = true,
                 .until = now + std::chrono::milliseconds(arena->request.timeout_ms)};
    LookForArena(connection, now);
  } else if (auto* tell = std::get_if<step::TellHeld>(&step)) {
    SendReply(connection, "HeldMemory", HeldReply(host_.HeldOn(tell->request.gpu)));
  } else if (auto* use = std::get_if<step::NoteCacheUse>(&step)) {
    host_.OnCacheUse(use->request);
    SendReply(connection, "CacheUse", OkReply());
  }
}

void EngineServer::Loop::Perform(Connection& connection, const CommandStep& step) {
  CommandConnection& command = *connection.command;
  if (const auto* reply = std::get_if<step::Reply>(&step)) {
    log::Warning("engine request refused",
                 {{"error", reply->body.value("message", "")}, {"enginePid", connection.pid}});
    SendReply(connection, "Invalid", reply->body, {}, reply->close);
  } else if (const auto* attach = std::get_if<step::Attach>(&step)) {
    command.core = host_.OnCoreAttached(attach->request);
    SendReply(connection, "Attach", AttachedReply());
  } else if (const auto* await = std::get_if<step::AwaitCommand>(&step)) {
    const auto now = Clock::now();
    command.awaits = now + std::chrono::milliseconds(await->request.timeout_ms);
    LookForCommand(connection, now);
  } else if (const auto* done = std::get_if<step::FinishCommand>(&step)) {
    host_.OnCommandDone(command.core, done->request);
    SendReply(connection, "CommandDone", OkReply());
  }
}

}  // namespace rouse::agent
