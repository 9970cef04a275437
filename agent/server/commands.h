// Commands to the engine, for whoever has one: one at a time, to all of its cores.
//
// The rules are CommandBook's; here they meet threads. Attach, Leave, Next and Done are called by
// the engine socket's thread, all else by any.

#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>

#include "agent/engine/command_book.h"
#include "common/result.h"

namespace rouse::agent {

class Commands {
 public:
  /// Called once for each command that was begun, without a lock, by the thread that ended it.
  using Ended = std::function<void(const CommandOutcome&)>;

  /// `announce` tells the engine socket that there is a command.
  explicit Commands(std::function<void()> announce) : announce_(std::move(announce)) {}

  CommandBook::Core Attach(const AttachRequest& request);
  void Leave(CommandBook::Core core);
  std::optional<Command> Next(CommandBook::Core core);
  void Done(CommandBook::Core core, const CommandDoneRequest& done);

  /// Whether all of the engine's cores take commands; says how many do.
  Status Ready() const;
  /// Has the engine do it. One that is under way is waited for, at most `longest`. When this fails
  /// `ended` is not called.
  Status Begin(CommandKind kind, std::chrono::milliseconds limit, Ended ended,
               std::chrono::milliseconds longest = std::chrono::seconds(5));
  /// The command under way, if any, ends with `why`.
  void Abandon(const Status& why);

 private:
  void End(std::unique_lock<std::mutex> lock);

  const std::function<void()> announce_;
  mutable std::mutex mutex_;
  std::condition_variable idle_;
  CommandBook book_;
  Ended ended_;
};

}  // namespace rouse::agent
