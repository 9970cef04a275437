// One engine core's command connection, as a pure state machine: a request goes in, a reply or one
// thing to do comes out.
//
//   Attach -> AwaitCommand (again and again) -> a command -> CommandDone -> AwaitCommand ...
//
// Pure: no I/O, no clock. A request that comes out of turn is answered with an error and changes
// nothing.

#pragma once

#include <cstdint>
#include <optional>
#include <variant>

#include "agent/engine/session.h"

namespace rouse::agent {

/// Things for the shell to do, beside step::Reply. Each leads to the reply.
namespace step {
/// The core is there: tell the host, then send AttachedReply.
struct Attach {
  AttachRequest request;
};
struct AwaitCommand {
  AwaitCommandRequest request;
};
/// The core has done the command that it was given, or says why not.
struct FinishCommand {
  CommandDoneRequest request;
};
}  // namespace step

using CommandStep =
    std::variant<step::Reply, step::Attach, step::AwaitCommand, step::FinishCommand>;

class CommandSession {
 public:
  /// What to do about a message that was decoded, or could not be (its Status).
  CommandStep OnRequest(const Result<EngineRequest>& request);

  /// The shell has sent this command.
  void OnCommandSent(std::int64_t id) { under_way_ = id; }

  /// Once Attach was accepted.
  bool attached() const { return attached_; }

 private:
  std::optional<Status> OutOfTurn(const EngineRequest& request) const;

  bool attached_ = false;
  std::optional<std::int64_t> under_way_;
  int errors_ = 0;
};

}  // namespace rouse::agent
