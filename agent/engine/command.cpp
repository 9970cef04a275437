#include "agent/engine/command.h"

#include "agent/engine/protocol.h"
#include "common/protocol.h"

namespace rouse::agent {

std::string_view ToString(CommandKind kind) {
  return json::NameOf<CommandKind>(kind, kCommandKinds);
}

Result<AttachRequest> ReadAttach(json::Reader& in) {
  ROUSE_RETURN_IF_ERROR(CheckProtocol(in, kEngineProtocol, kEngineVersion));
  in.Only({"type", "protocol", "version", "pid", "engine", "engineVersion", "core", "cores"});
  AttachRequest attach{.pid = in.Int("pid"),
                       .engine = in.String("engine"),
                       .engine_version = in.String("engineVersion"),
                       .core = static_cast<std::uint32_t>(in.Int("core", 0, kMaxWorldSize - 1)),
                       .cores = static_cast<std::uint32_t>(in.Int("cores", 1, kMaxWorldSize))};
  if (attach.core >= attach.cores) {
    in.Fail("core",
            std::to_string(attach.core) + " is not below cores " + std::to_string(attach.cores));
  }
  ROUSE_RETURN_IF_ERROR(in.status());
  return attach;
}

AwaitCommandRequest ReadAwaitCommand(json::Reader& in) {
  in.Only({"type", "timeoutMs"});
  return {.timeout_ms = in.Int("timeoutMs", 0, kMaxAwaitMs)};
}

CommandDoneRequest ReadCommandDone(json::Reader& in) {
  in.Only({"type", "id", "ok", "values", "error"});
  CommandDoneRequest done{.id = in.Int("id", 1)};
  if (!in.Bool("ok")) {
    if (in.Has("values")) in.Fail("values", "come with ok true only");
    done.error = in.String("error").substr(0, kMaxCommandError);
    if (done.error.empty()) in.Fail("error", "is empty");
    return done;
  }
  if (in.Has("error")) in.Fail("error", "comes with ok false only");
  const json::Json& values = in.Object("values");
  if (values.size() > kMaxCommandValues) {
    in.Fail("values", "has more than " + std::to_string(kMaxCommandValues) + " members");
    return done;
  }
  json::Reader entries(values, in.Path("values"));
  for (const auto& [name, value] : values.items()) {
    if (name.empty() || name.size() > kMaxCommandValueName) {
      in.Fail("values", "has a name of " + std::to_string(name.size()) + " bytes");
    }
    const double number = entries.Number(name);
    if (number < 0) entries.Fail(name, "is negative");
    done.values.emplace(name, number);
  }
  in.Take(entries.status());
  return done;
}

json::Json AttachedReply() {
  return {{"type", "Attached"}, {"protocol", kEngineProtocol}, {"version", kEngineVersion}};
}

json::Json CommandReply(const Command& command) {
  json::Json reply = {{"type", "Command"}, {"id", command.id}, {"command", ToString(command.kind)}};
  if (command.kind == CommandKind::kSleep) reply["drainMs"] = command.limit.count();
  if (command.kind == CommandKind::kCaptureGraphs) reply["budgetMs"] = command.limit.count();
  return reply;
}

}  // namespace rouse::agent
