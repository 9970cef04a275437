// How many requests the engine has, as vLLM's /metrics say, and when a change is told at once.
// Pure.

#pragma once

#include <chrono>
#include <optional>
#include <string_view>

#include "common/messages.h"
#include "common/result.h"

namespace rouse::agent {

/// vllm:num_requests_running and vllm:num_requests_waiting of a Prometheus text, summed over all
/// engine cores. Unavailable when it has not both, or a value that cannot be one.
Result<EngineLoad> LoadFromMetrics(std::string_view text);

/// Whether the operator, who was told `told` that long ago, shall be told `now` before the report
/// that comes anyway. At once: that load appears, that requests begin to wait, that it is known at
/// all. At most every 2 s: that it has changed by a fifth or more, or is gone.
bool IsNews(const std::optional<EngineLoad>& told, const std::optional<EngineLoad>& now,
            std::chrono::milliseconds since_told);

}  // namespace rouse::agent
