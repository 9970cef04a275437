#include "operator/kube/micro_time.h"

#include <cstdio>
#include <ctime>

namespace rouse::kube {

std::string MicroTime(WallTime time) {
  using std::chrono::duration_cast;
  using std::chrono::microseconds;
  const auto micros = duration_cast<microseconds>(time.time_since_epoch()).count();
  std::time_t seconds = static_cast<std::time_t>(micros / 1'000'000);
  auto rest = micros % 1'000'000;
  if (rest < 0) {
    rest += 1'000'000;
    --seconds;
  }
  std::tm utc{};
  gmtime_r(&seconds, &utc);
  char text[64];
  const std::size_t length = std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &utc);
  std::snprintf(text + length, sizeof text - length, ".%06lldZ", static_cast<long long>(rest));
  return text;
}

}  // namespace rouse::kube
