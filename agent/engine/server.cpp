#include "agent/engine/server.h"

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <list>
#include <thread>
#include <vector>

#include "agent/engine/document.h"
#include "agent/engine/session.h"
#include "agent/socket/seqpacket.h"
#include "common/log.h"

namespace rouse::agent {
namespace {

using Clock = std::chrono::steady_clock;

/// How often one wake-up reads from one connection at most, so that a busy one starves no other.
constexpr int kMessagesPerTurn = 4;

struct Answer {
  std::string body;
  std::vector<OwnedFd> fds;
  Clock::time_point until;  ///< When we stop waiting for the client to take it.
  bool close = false;
};

struct Awaiting {
  std::uint32_t rank = 0;
  Clock::time_point until;
};

/// A Hello that came before it was settled what to offer.
struct HeldHello {
  HelloRequest hello;
  Clock::time_point until;
};

/// A question about a stream whose answer is on its way.
struct Streaming {
  std::variant<OpenStreamRequest, NextBatchRequest> request;
  Clock::time_point until;
};

struct Connection {
  OwnedFd socket;
  EngineSession session;
  Clock::time_point since;
  int pid = -1;
  std::optional<Answer> answer;
  std::optional<Awaiting> awaiting;
  std::optional<HeldHello> held;
  std::optional<Streaming> streaming;
  bool over = false;

  /// It has asked, and its answer depends on the weights: nothing is read until then.
  bool Waits() const { return awaiting || held || streaming; }
};

}  // namespace

class EngineServer::Loop {
 public:
  Loop(SeqpacketListener listener, OwnedFd wake, EngineHost& host, const EngineServerLimits& limits)
      : listener_(std::move(listener)), wake_(std::move(wake)), host_(host), limits_(limits) {
    thread_ = std::jthread([this](const std::stop_token& stop) {
      pthread_setname_np(pthread_self(), "engine-socket");
      Run(stop);
    });
  }

  ~Loop() {
    thread_.request_stop();
    Wake();
    thread_.join();
  }

  void Wake() {
    const std::uint64_t one = 1;
    [[maybe_unused]] const ssize_t wrote = ::write(wake_.get(), &one, sizeof one);
  }

 private:
  void Run(const std::stop_token& stop);
  int Timeout(Clock::time_point now) const;
  void Accept();
  void Serve(Connection& connection);
  void Expire(Connection& connection, Clock::time_point now);
  void LookAgain(Connection& connection, Clock::time_point now);
  void LookForWeights(Connection& connection, Clock::time_point now);
  void LookForStream(Connection& connection, Clock::time_point now);
  void AwaitStream(Connection& connection,
                   std::variant<OpenStreamRequest, NextBatchRequest> request,
                   std::int64_t timeout_ms);
  void OnMessage(Connection& connection, SeqpacketMessage message);
  void Perform(Connection& connection, EngineStep step, std::vector<OwnedFd>& fds);
  void SendReply(Connection& connection, std::string_view type, const json::Json& body,
                 std::vector<OwnedFd> fds = {}, bool close = false);
  void Flush(Connection& connection);
  void Drop(Connection& connection, const std::string& why);

  SeqpacketListener listener_;
  OwnedFd wake_;
  EngineHost& host_;
  const EngineServerLimits limits_;
  std::list<Connection> connections_;
  std::jthread thread_;
};

void EngineServer::Loop::Run(const std::stop_token& stop) {
  std::vector<pollfd> watched;
  while (!stop.stop_requested()) {
    watched.clear();
    watched.push_back({wake_.get(), POLLIN, 0});
    watched.push_back({listener_.fd(), POLLIN, 0});
    for (const Connection& connection : connections_) {
      // A hang-up is always reported, also of a client that waits for its weights.
      const short events = connection.answer ? POLLOUT : connection.Waits() ? short{0} : POLLIN;
      watched.push_back({connection.socket.get(), events, 0});
    }
    const int ready = ::poll(watched.data(), watched.size(), Timeout(Clock::now()));
    if (ready < 0 && errno != EINTR) {
      log::Error("engine socket cannot poll, it stops",
                 {{"error", FromErrno(errno, "poll").message()}});
      return;
    }
    std::uint64_t count = 0;
    if ((watched[0].revents & POLLIN) != 0) {
      [[maybe_unused]] const ssize_t got = ::read(wake_.get(), &count, sizeof count);
    }
    std::size_t index = 2;
    for (Connection& connection : connections_) {
      const short happened = ready > 0 ? watched[index].revents : short{0};
      ++index;
      if (connection.Waits() && (happened & (POLLHUP | POLLERR)) != 0) {
        Drop(connection, "closed while it waited for weights");
      } else if (happened != 0) {
        Serve(connection);
      }
      if (!connection.over && connection.Waits()) LookAgain(connection, Clock::now());
      if (!connection.over) Expire(connection, Clock::now());
    }
    connections_.remove_if([](const Connection& connection) { return connection.over; });
    if (ready > 0 && watched[1].revents != 0) Accept();
  }
  for (Connection& connection : connections_) Drop(connection, "the agent ends");
  connections_.clear();
}

int EngineServer::Loop::Timeout(Clock::time_point now) const {
  Clock::time_point next = now + std::chrono::seconds(60);
  for (const Connection& connection : connections_) {
    if (!connection.session.rank())
      next = std::min(next, connection.since + limits_.hello_deadline);
    if (connection.answer) next = std::min(next, connection.answer->until);
    if (connection.awaiting) next = std::min(next, connection.awaiting->until);
    if (connection.held) next = std::min(next, connection.held->until);
    if (connection.streaming) next = std::min(next, connection.streaming->until);
  }
  const auto wait = std::chrono::ceil<std::chrono::milliseconds>(next - now).count();
  return static_cast<int>(std::clamp<std::int64_t>(wait, 0, 60'000));
}

void EngineServer::Loop::Accept() {
  for (int i = 0; i < 16; ++i) {
    auto socket = listener_.Accept();
    if (!socket.ok()) {
      // Out of descriptors, most likely: give those that hold them time to end.
      log::Error("engine socket cannot accept", {{"error", socket.status().message()}});
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
      return;
    }
    if (!socket->valid()) return;
    if (connections_.size() >= limits_.max_connections) {
      log::Warning("engine connection refused, too many are open",
                   {{"connections", connections_.size()}});
      continue;
    }
    Connection connection;
    connection.pid = SeqpacketPeerPid(socket->get());
    connection.socket = *std::move(socket);
    connection.since = Clock::now();
    connections_.push_back(std::move(connection));
  }
}

void EngineServer::Loop::Serve(Connection& connection) {
  if (connection.answer) Flush(connection);
  for (int i = 0; i < kMessagesPerTurn; ++i) {
    if (connection.over || connection.answer || connection.Waits()) return;
    auto message = SeqpacketReceive(connection.socket.get());
    if (!message.ok()) return Drop(connection, message.status().message());
    if (!message->has_value()) return;
    OnMessage(connection, std::move(**message));
  }
}

void EngineServer::Loop::Expire(Connection& connection, Clock::time_point now) {
  if (connection.answer && now >= connection.answer->until) {
    Drop(connection, "did not take its answer in time");
  } else if (!connection.session.rank() && now >= connection.since + limits_.hello_deadline) {
    Drop(connection, "sent no valid Hello in time");
  }
}

void EngineServer::Loop::LookAgain(Connection& connection, Clock::time_point now) {
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
    host_.OnRankConnected(welcome->hello, welcome->from_peer);
    SendReply(connection, "Hello", welcome->welcome);
  } else if (auto* refuse = std::get_if<step::Refuse>(&step)) {
    host_.OnRefused(refuse->hello, refuse->reason);
    SendReply(connection, "Hello", refuse->error, {}, true);
  } else if (auto* phase = std::get_if<step::RecordPhase>(&step)) {
    host_.OnPhase(*connection.session.rank(), phase->request);
    SendReply(connection, "Phase", OkReply());
  } else if (auto* await = std::get_if<step::AwaitWeights>(&step)) {
    connection.awaiting = Awaiting{
        await->request.rank, Clock::now() + std::chrono::milliseconds(await->request.timeout_ms)};
    LookForWeights(connection, Clock::now());
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
    const Status done =
        host_.Publish(*connection.session.hello(), fds.front(), publish->request.manifest_bytes);
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
  }
}

void EngineServer::Loop::SendReply(Connection& connection, std::string_view type,
                                   const json::Json& body, std::vector<OwnedFd> fds, bool close) {
  host_.OnAnswered(type, body.value("type", "") != "Error");
  connection.answer =
      Answer{json::Dump(body), std::move(fds), Clock::now() + limits_.send_deadline, close};
  Flush(connection);
}

void EngineServer::Loop::Flush(Connection& connection) {
  std::vector<int> fds;
  for (const OwnedFd& fd : connection.answer->fds) fds.push_back(fd.get());
  auto sent = SeqpacketSend(connection.socket.get(), connection.answer->body, fds);
  if (!sent.ok()) return Drop(connection, sent.status().message());
  if (!*sent) return;  // The poll loop tries again when there is room.
  const bool close = connection.answer->close;
  connection.answer.reset();
  if (close) Drop(connection, "refused");
}

void EngineServer::Loop::Drop(Connection& connection, const std::string& why) {
  if (connection.over) return;
  connection.over = true;
  const auto rank = connection.session.rank();
  if (rank) host_.OnRankDisconnected(*rank);
  Wake();  // Other ranks may have waited for it.
  log::Info("engine connection ended",
            {{"reason", why}, {"rank", rank ? nlohmann::json(*rank) : nlohmann::json()}});
}

EngineServer::EngineServer(std::unique_ptr<Loop> loop) : loop_(std::move(loop)) {}
EngineServer::~EngineServer() = default;

void EngineServer::Wake() {
  loop_->Wake();
}

Result<std::unique_ptr<EngineServer>> EngineServer::Start(const std::string& path, EngineHost& host,
                                                          const EngineServerLimits& limits) {
  ROUSE_ASSIGN_OR_RETURN(SeqpacketListener listener, SeqpacketListener::Listen(path));
  OwnedFd wake(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake.valid()) return FromErrno(errno, "create the engine socket's event descriptor");
  return std::unique_ptr<EngineServer>(
      new EngineServer(std::make_unique<Loop>(std::move(listener), std::move(wake), host, limits)));
}

}  // namespace rouse::agent
