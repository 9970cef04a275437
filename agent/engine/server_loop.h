// The inside of the engine socket's server: its connections, and the loop that serves them.
//
// server.cpp polls and sends, server_requests.cpp answers what is asked. One thread.

#pragma once

#include <chrono>
#include <list>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <variant>
#include <vector>

#include "agent/engine/command_session.h"
#include "agent/engine/server.h"
#include "agent/engine/session.h"
#include "agent/socket/seqpacket.h"

namespace rouse::agent {

using Clock = std::chrono::steady_clock;

struct Answer {
  std::string body;
  std::vector<OwnedFd> fds;
  Clock::time_point until;  ///< When we stop waiting for the client to take it.
  bool close = false;
};

/// A rank waits for its weights, or for the arena that they will arrive in.
struct Awaiting {
  std::uint32_t rank = 0;
  bool arena = false;
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

/// A core's connection, once it has begun with Attach.
struct CommandConnection {
  CommandSession session;
  CommandBook::Core core = 0;               ///< 0 until it is attached.
  std::optional<Clock::time_point> awaits;  ///< A command, until then.
};

struct Connection {
  OwnedFd socket;
  EngineSession session;
  std::optional<CommandConnection> command;
  Clock::time_point since;
  int pid = -1;
  std::optional<Answer> answer;
  std::optional<Awaiting> awaiting;
  std::optional<HeldHello> held;
  std::optional<Streaming> streaming;
  bool over = false;

  /// It has asked, and its answer is still to come: nothing is read until then.
  bool Waits() const { return awaiting || held || streaming || (command && command->awaits); }
  /// It has said who it is, and was accepted.
  bool Introduced() const { return session.rank() || (command && command->session.attached()); }
};

class EngineServer::Loop {
 public:
  Loop(SeqpacketListener listener, OwnedFd wake, EngineHost& host,
       const EngineServerLimits& limits);
  ~Loop();

  void Wake();

 private:
  void Run(const std::stop_token& stop);
  int Timeout(Clock::time_point now) const;
  void Accept();
  void Serve(Connection& connection);
  void Expire(Connection& connection, Clock::time_point now);
  void LookAgain(Connection& connection, Clock::time_point now);
  void LookForWeights(Connection& connection, Clock::time_point now);
  void LookForArena(Connection& connection, Clock::time_point now);
  void LookForCommand(Connection& connection, Clock::time_point now);
  void LookForStream(Connection& connection, Clock::time_point now);
  void AwaitStream(Connection& connection,
                   std::variant<OpenStreamRequest, NextBatchRequest> request,
                   std::int64_t timeout_ms);
  void OnMessage(Connection& connection, SeqpacketMessage message);
  void Perform(Connection& connection, EngineStep step, std::vector<OwnedFd>& fds);
  void Perform(Connection& connection, const CommandStep& step);
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

}  // namespace rouse::agent
