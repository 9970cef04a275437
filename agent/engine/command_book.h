// The command to one engine that is under way, and how far each of its cores is with it.
//
//   CommandBook book;
//   const auto core = book.Attach(request);          // each core's connection
//   book.Begin(CommandKind::kSleep, drain);          // when all cores are there
//   book.Next(core)                                  // what the core asks AwaitCommand for
//   book.Done(core, request)                         // the last one completes the outcome
//   book.TakeOutcome()
//
// One command at a time. It is done when every core has said so; a core that says no, or whose
// connection ends before, fails it. Pure; not thread-safe.

#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "agent/engine/command.h"
#include "common/result.h"

namespace rouse::agent {

struct CommandOutcome {
  Status status;
  /// Of all cores together: times (names that end in "econds") are the longest, all else adds up.
  CommandValues values;
};

class CommandBook {
 public:
  /// One core's connection; never 0, never used again.
  using Core = std::uint64_t;

  /// A core that attaches anew takes the place of its connection before, which takes no part any
  /// more; the newest one's word counts for how many there are.
  Core Attach(const AttachRequest& request);
  void Leave(Core core);
  /// Ok when every core of the engine is attached, else says how many are.
  Status Ready() const;

  /// FailedPrecondition when one is under way, Unavailable when not every core is there.
  Result<Command> Begin(CommandKind kind, std::chrono::milliseconds limit);
  /// Whoever waits for the command under way does so no longer; a core that was given it may finish
  /// it.
  void Abandon(const Status& why);
  bool busy() const { return command_.has_value(); }

  /// The command that this core has not been given yet.
  std::optional<Command> Next(Core core);
  /// What a core says of a command that is not under way (any more) changes nothing.
  void Done(Core core, const CommandDoneRequest& done);

  /// Of the command that was under way, once it is not any more.
  std::optional<CommandOutcome> TakeOutcome();

 private:
  enum class Part { kWaiting, kGiven, kDone };
  struct Attached {
    std::uint32_t core = 0;
    Part part = Part::kDone;
  };

  void Fail(const Status& why);

  Core last_core_ = 0;
  std::int64_t last_id_ = 0;
  std::uint32_t cores_ = 0;
  std::map<Core, Attached> attached_;
  std::optional<Command> command_;
  CommandValues values_;
  std::optional<CommandOutcome> outcome_;
};

}  // namespace rouse::agent
