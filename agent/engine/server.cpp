#include "agent/engine/server.h"

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "agent/engine/server_loop.h"
#include "common/log.h"

namespace rouse::agent {
namespace {

/// How often one wake-up reads from one connection at most, so that a busy one starves no other.
constexpr int kMessagesPerTurn = 4;

}  // namespace

EngineServer::Loop::Loop(SeqpacketListener listener, OwnedFd wake, EngineHost& host,
                         const EngineServerLimits& limits)
    : listener_(std::move(listener)), wake_(std::move(wake)), host_(host), limits_(limits) {
  thread_ = std::jthread([this](const std::stop_token& stop) {
    pthread_setname_np(pthread_self(), "engine-socket");
    Run(stop);
  });
}

EngineServer::Loop::~Loop() {
  thread_.request_stop();
  Wake();
  thread_.join();
}

void EngineServer::Loop::Wake() {
  const std::uint64_t one = 1;
  [[maybe_unused]] const ssize_t wrote = ::write(wake_.get(), &one, sizeof one);
}

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
        Drop(connection, "closed while it waited for an answer");
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
    if (!connection.Introduced()) next = std::min(next, connection.since + limits_.hello_deadline);
    if (connection.answer) next = std::min(next, connection.answer->until);
    if (connection.awaiting) next = std::min(next, connection.awaiting->until);
    if (connection.held) next = std::min(next, connection.held->until);
    if (connection.streaming) next = std::min(next, connection.streaming->until);
    if (connection.command && connection.command->awaits) {
      next = std::min(next, *connection.command->awaits);
    }
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
  } else if (!connection.Introduced() && now >= connection.since + limits_.hello_deadline) {
    Drop(connection, "sent no valid Hello or Attach in time");
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
  if (connection.command && connection.command->core != 0) {
    host_.OnCoreGone(connection.command->core);
  }
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
