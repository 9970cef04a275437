#include "agent/engine/command_book.h"

#include <algorithm>

namespace rouse::agent {
namespace {

std::string CoreName(std::uint32_t core) {
  return "engine core " + std::to_string(core);
}

void Add(CommandValues& all, const CommandValues& more) {
  for (const auto& [name, value] : more) {
    double& sum = all[name];
    sum = name.ends_with("econds") ? std::max(sum, value) : sum + value;
  }
}

}  // namespace

CommandBook::Core CommandBook::Attach(const AttachRequest& request) {
  cores_ = request.cores;
  for (auto it = attached_.begin(); it != attached_.end();) {
    const bool replaced = it->second.core == request.core || it->second.core >= cores_;
    const Core gone = it->first;
    ++it;
    if (replaced) Leave(gone);
  }
  // A command that is under way fails by what has just left; this core takes part in the next one.
  attached_[++last_core_] = {.core = request.core, .part = Part::kDone};
  return last_core_;
}

void CommandBook::Leave(Core core) {
  const auto found = attached_.find(core);
  if (found == attached_.end()) return;
  const Attached gone = found->second;
  attached_.erase(found);
  if (command_ && gone.part != Part::kDone) {
    Fail(Unavailable(CoreName(gone.core) + " has ended its connection before it was done"));
  }
}

Status CommandBook::Ready() const {
  if (cores_ > 0 && attached_.size() == cores_) return {};
  if (cores_ == 0) return Unavailable("the engine has not attached to take commands");
  return Unavailable(std::to_string(attached_.size()) + " of " + std::to_string(cores_) +
                     " engine cores are attached to take commands");
}

Result<Command> CommandBook::Begin(CommandKind kind, std::chrono::milliseconds limit) {
  if (command_) {
    return FailedPrecondition("command " + std::string(ToString(command_->kind)) + " is under way");
  }
  ROUSE_RETURN_IF_ERROR(Ready());
  for (auto& [core, attached] : attached_) attached.part = Part::kWaiting;
  command_ = Command{.id = ++last_id_, .kind = kind, .limit = limit};
  values_.clear();
  outcome_.reset();
  return *command_;
}

void CommandBook::Abandon(const Status& why) {
  if (command_) Fail(why);
}

void CommandBook::Fail(const Status& why) {
  outcome_ = CommandOutcome{
      .status = why.WithContext("command " + std::string(ToString(command_->kind))), .values = {}};
  command_.reset();
}

std::optional<Command> CommandBook::Next(Core core) {
  const auto found = attached_.find(core);
  if (!command_ || found == attached_.end() || found->second.part != Part::kWaiting) {
    return std::nullopt;
  }
  found->second.part = Part::kGiven;
  return command_;
}

void CommandBook::Done(Core core, const CommandDoneRequest& done) {
  const auto found = attached_.find(core);
  if (!command_ || command_->id != done.id || found == attached_.end()) return;
  if (!done.error.empty()) {
    return Fail(Status(StatusCode::kInternal,
                       (cores_ > 1 ? CoreName(found->second.core) + ": " : "") + done.error));
  }
  found->second.part = Part::kDone;
  Add(values_, done.values);
  const bool all = std::all_of(attached_.begin(), attached_.end(),
                               [](const auto& entry) { return entry.second.part == Part::kDone; });
  if (!all) return;
  outcome_ = CommandOutcome{.status = {}, .values = std::move(values_)};
  command_.reset();
}

std::optional<CommandOutcome> CommandBook::TakeOutcome() {
  auto outcome = std::move(outcome_);
  outcome_.reset();
  return outcome;
}

}  // namespace rouse::agent
