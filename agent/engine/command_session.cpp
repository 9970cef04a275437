#include "agent/engine/command_session.h"

namespace rouse::agent {

std::optional<Status> CommandSession::OutOfTurn(const EngineRequest& request) const {
  const std::string name(TypeName(request));
  if (std::holds_alternative<AttachRequest>(request)) {
    if (attached_) return FailedPrecondition("Attach came twice on one connection");
    return std::nullopt;
  }
  if (!attached_) return FailedPrecondition(name + " before Attach");
  if (std::holds_alternative<AwaitCommandRequest>(request)) {
    if (!under_way_) return std::nullopt;
    return FailedPrecondition("AwaitCommand before CommandDone of command " +
                              std::to_string(*under_way_));
  }
  if (const auto* done = std::get_if<CommandDoneRequest>(&request)) {
    if (!under_way_) return FailedPrecondition("CommandDone, but no command is under way");
    if (done->id == *under_way_) return std::nullopt;
    return InvalidArgument("id: command " + std::to_string(*under_way_) + " is under way, not " +
                           std::to_string(done->id));
  }
  return FailedPrecondition(name + " on a command connection: ranks have connections of their own");
}

CommandStep CommandSession::OnRequest(const Result<EngineRequest>& request) {
  Status problem = request.status();
  if (problem.ok()) problem = OutOfTurn(*request).value_or(Status());
  if (!problem.ok()) {
    // Two programs that do not fit have nothing more to say to each other.
    const bool stranger = problem.code() == StatusCode::kFailedPrecondition && !attached_;
    return step::Reply{ErrorReply(problem), stranger || ++errors_ >= kMaxSessionErrors};
  }
  if (const auto* await = std::get_if<AwaitCommandRequest>(&*request)) {
    return step::AwaitCommand{*await};
  }
  if (const auto* done = std::get_if<CommandDoneRequest>(&*request)) {
    under_way_.reset();
    return step::FinishCommand{*done};
  }
  attached_ = true;
  return step::Attach{std::get<AttachRequest>(*request)};
}

}  // namespace rouse::agent
