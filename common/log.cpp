#include "common/log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <string>

namespace rouse::log {
namespace {

spdlog::level::level_enum ToSpdlog(Level level) {
  switch (level) {
    case Level::kDebug:
      return spdlog::level::debug;
    case Level::kInfo:
      return spdlog::level::info;
    case Level::kWarning:
      return spdlog::level::warn;
    case Level::kError:
      return spdlog::level::err;
  }
  return spdlog::level::info;
}

spdlog::logger& Logger() {
  // Leaked on purpose: threads may log until the very end of the process.
  static spdlog::logger* const logger = [] {
    auto* made = new spdlog::logger("rouse", std::make_shared<spdlog::sinks::stderr_sink_mt>());
    made->set_pattern("%v");
    made->set_level(spdlog::level::info);
    made->flush_on(spdlog::level::info);
    return made;
  }();
  return *logger;
}

std::string& Program() {
  static std::string* const program = new std::string("rouse");
  return *program;
}

void Write(Level level, std::string_view name, std::string_view message, Fields fields) {
  try {
    if (!Logger().should_log(ToSpdlog(level))) return;
    nlohmann::ordered_json line;
    const auto now =
        std::chrono::time_point_cast<std::chrono::microseconds>(std::chrono::system_clock::now());
    const auto micros = now.time_since_epoch().count();
    const std::time_t seconds = static_cast<std::time_t>(micros / 1000000);
    std::tm utc{};
    gmtime_r(&seconds, &utc);
    line["time"] = fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}Z", utc.tm_year + 1900,
                               utc.tm_mon + 1, utc.tm_mday, utc.tm_hour, utc.tm_min, utc.tm_sec,
                               micros % 1000000);
    line["level"] = name;
    line["program"] = Program();
    line["message"] = message;
    for (const auto& [key, value] : fields) line[std::string(key)] = value;
    Logger().log(ToSpdlog(level), "{}",
                 line.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
  } catch (...) {
    // Logging must never take a program down; there is nowhere left to report to.
  }
}

}  // namespace

void Init(std::string_view program, Level level) {
  Program() = program;
  Logger().set_level(ToSpdlog(level));
}

void Debug(std::string_view message, Fields fields) {
  Write(Level::kDebug, "debug", message, fields);
}
void Info(std::string_view message, Fields fields) {
  Write(Level::kInfo, "info", message, fields);
}
void Warning(std::string_view message, Fields fields) {
  Write(Level::kWarning, "warning", message, fields);
}
void Error(std::string_view message, Fields fields) {
  Write(Level::kError, "error", message, fields);
}

}  // namespace rouse::log
