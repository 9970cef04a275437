#include "agent/startup/engine_load.h"

#include <charconv>
#include <cmath>

namespace rouse::agent {
namespace {

constexpr std::chrono::milliseconds kBetweenChanges{2'000};

/// Adds the value of one sample line, "NAME{labels} 3.0".
Status Add(std::string_view line, std::optional<std::uint64_t>& sum) {
  const std::string_view number = line.substr(line.rfind(' ') + 1);
  double value = -1;
  const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), value);
  if (error != std::errc() || end != number.data() + number.size() || !std::isfinite(value) ||
      value < 0 || value > static_cast<double>(kMaxRequests)) {
    return Unavailable("the engine's metrics say \"" + std::string(line.substr(0, 200)) + "\"");
  }
  sum = sum.value_or(0) + static_cast<std::uint64_t>(value);
  if (*sum > static_cast<std::uint64_t>(kMaxRequests)) {
    return Unavailable("the engine's metrics tell more requests than there can be");
  }
  return {};
}

}  // namespace

Result<EngineLoad> LoadFromMetrics(std::string_view text) {
  std::optional<std::uint64_t> running, waiting;
  while (!text.empty()) {
    const std::size_t end = text.find('\n');
    std::string_view line = text.substr(0, end);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.starts_with("vllm:num_requests_running{")) {
      ROUSE_RETURN_IF_ERROR(Add(line, running));
    } else if (line.starts_with("vllm:num_requests_waiting{")) {
      ROUSE_RETURN_IF_ERROR(Add(line, waiting));
    }
  }
  if (!running || !waiting) {
    return Unavailable(
        "the engine's metrics lack vllm:num_requests_running or vllm:num_requests_waiting");
  }
  return EngineLoad{.running = *running, .waiting = *waiting};
}

bool IsNews(const std::optional<EngineLoad>& told, const std::optional<EngineLoad>& now,
            std::chrono::milliseconds since_told) {
  if (told == now) return false;
  if (!told || !now) return now.has_value() || since_told >= kBetweenChanges;
  if (told->total() == 0 || (told->waiting == 0 && now->waiting > 0)) return true;
  const std::uint64_t change =
      now->total() > told->total() ? now->total() - told->total() : told->total() - now->total();
  return since_told >= kBetweenChanges && change * 5 >= told->total();
}

}  // namespace rouse::agent
