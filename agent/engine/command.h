// Commands to the engine: what a command connection says (docs/protocols.md §3), decoded strictly.
//
// Pure: text in, values out. An error names the field.

#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "common/json.h"

namespace rouse::agent {

inline constexpr std::size_t kMaxCommandValues = 32;
inline constexpr std::size_t kMaxCommandValueName = 64;
inline constexpr std::size_t kMaxCommandError = 4096;

enum class CommandKind {
  kSleep,          ///< Finish what is under way, give up the arena's mapping and the KV memory.
  kWake,           ///< Map the arena that arrives and take KV memory again.
  kCaptureGraphs,  ///< Capture some of the graphs that were left out at the start.
};
inline constexpr json::EnumName<CommandKind> kCommandKinds[] = {
    {CommandKind::kSleep, "Sleep"},
    {CommandKind::kWake, "Wake"},
    {CommandKind::kCaptureGraphs, "CaptureGraphs"}};
std::string_view ToString(CommandKind kind);

struct Command {
  std::int64_t id = 0;
  CommandKind kind = CommandKind::kSleep;
  /// How long requests under way may take (Sleep), what may be spent at once (CaptureGraphs).
  std::chrono::milliseconds limit{0};

  bool operator==(const Command&) const = default;
};

/// Figures of a command that was carried out, by name.
using CommandValues = std::map<std::string, double>;

/// Begins a command connection: one engine core (a data-parallel replica) of the pod's.
struct AttachRequest {
  std::int64_t pid = 0;
  std::string engine;
  std::string engine_version;
  std::uint32_t core = 0;
  std::uint32_t cores = 1;
};
struct AwaitCommandRequest {
  std::int64_t timeout_ms = 0;
};
struct CommandDoneRequest {
  std::int64_t id = 0;
  CommandValues values;  ///< Of a command that was carried out.
  std::string error;     ///< Why it was not; empty: it was.
};

Result<AttachRequest> ReadAttach(json::Reader& in);
AwaitCommandRequest ReadAwaitCommand(json::Reader& in);
CommandDoneRequest ReadCommandDone(json::Reader& in);

json::Json AttachedReply();
json::Json CommandReply(const Command& command);

}  // namespace rouse::agent
