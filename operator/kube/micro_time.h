// Times as the API writes them. Pure.

#pragma once

#include <chrono>
#include <string>

namespace rouse::kube {

using WallTime = std::chrono::system_clock::time_point;

/// RFC 3339 in UTC with microseconds, the API's MicroTime: "2026-01-02T03:04:05.000006Z".
std::string MicroTime(WallTime time);

}  // namespace rouse::kube
