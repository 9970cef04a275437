// Structured logging over spdlog: one JSON object a line on standard error.
//
//   log::Info("pod created", {{"pod", "default/demo-1"}, {"path", "Peer"}});
//
// The message is constant text, what varies goes into fields; the same thing has the same key
// everywhere (pod, modelservice, error, seconds, bytes, peer). Thread-safe. Never throws.

#pragma once

#include <initializer_list>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

namespace rouse::log {

using Fields = std::initializer_list<std::pair<std::string_view, nlohmann::json>>;

enum class Level { kDebug, kInfo, kWarning, kError };

/// Sets up the process-wide logger; `program` appears in every line. Call once from main.
void Init(std::string_view program, Level level);

void Debug(std::string_view message, Fields fields = {});
void Info(std::string_view message, Fields fields = {});
void Warning(std::string_view message, Fields fields = {});
void Error(std::string_view message, Fields fields = {});

}  // namespace rouse::log
