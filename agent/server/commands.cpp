#include "agent/server/commands.h"

#include <utility>

namespace rouse::agent {

CommandBook::Core Commands::Attach(const AttachRequest& request) {
  std::unique_lock lock(mutex_);
  const CommandBook::Core core = book_.Attach(request);
  End(std::move(lock));
  return core;
}

void Commands::Leave(CommandBook::Core core) {
  std::unique_lock lock(mutex_);
  book_.Leave(core);
  End(std::move(lock));
}

std::optional<Command> Commands::Next(CommandBook::Core core) {
  const std::scoped_lock lock(mutex_);
  return book_.Next(core);
}

void Commands::Done(CommandBook::Core core, const CommandDoneRequest& done) {
  std::unique_lock lock(mutex_);
  book_.Done(core, done);
  End(std::move(lock));
}

Status Commands::Ready() const {
  const std::scoped_lock lock(mutex_);
  return book_.Ready();
}

Status Commands::Begin(CommandKind kind, std::chrono::milliseconds limit, Ended ended,
                       std::chrono::milliseconds longest) {
  {
    std::unique_lock lock(mutex_);
    idle_.wait_for(lock, longest, [&] { return !book_.busy(); });
    ROUSE_RETURN_IF_ERROR(book_.Begin(kind, limit).status());
    ended_ = std::move(ended);
  }
  announce_();
  return {};
}

void Commands::Abandon(const Status& why) {
  std::unique_lock lock(mutex_);
  book_.Abandon(why);
  End(std::move(lock));
}

// Tells of a command that has just ended.
void Commands::End(std::unique_lock<std::mutex> lock) {
  const auto outcome = book_.TakeOutcome();
  if (!outcome) return;
  const Ended ended = std::exchange(ended_, nullptr);
  lock.unlock();
  idle_.notify_all();
  if (ended) ended(*outcome);
}

}  // namespace rouse::agent
