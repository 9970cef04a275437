// ModelService's status: what runs, as the operator saw it last, and the few things that it must
// remember between two runs (failures in a row, the last scale-outs). Pure values.

#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/json.h"
#include "operator/api/time.h"

namespace rouse::api {

using json::Json;

/// metav1.Condition.
struct Condition {
  std::string type;
  std::string status;  ///< "True", "False", "Unknown".
  std::string reason;  ///< CamelCase.
  std::string message;
  std::int64_t observed_generation = 0;
  TimePoint last_transition;  ///< Whole seconds on the wire.

  bool operator==(const Condition&) const = default;
};

inline constexpr char kConditionAvailable[] = "Available";      ///< At least one instance serves.
inline constexpr char kConditionProgressing[] = "Progressing";  ///< Instances start or stop.
/// Compile caches of one instance are used by the next.
inline constexpr char kConditionStateReuse[] = "StateReuse";
inline constexpr char kConditionDegraded[] = "Degraded";  ///< Starts fail, or the spec does, or
                                                          ///< weights take the slow road.

/// Puts `condition` in, in place of one of the same type; lastTransitionTime moves to `now` only if
/// the status differs from what was there.
void SetCondition(std::vector<Condition>& conditions, Condition condition, TimePoint now);

const Condition* FindCondition(const std::vector<Condition>& conditions, std::string_view type);

struct PhaseSeconds {
  std::string name;
  double seconds = 0;

  bool operator==(const PhaseSeconds&) const = default;
};

/// One start that reached its first token.
struct ScaleOut {
  std::string pod;
  std::string uid;
  std::string path;
  std::string reason;  ///< Why the better paths were not taken.
  double seconds = 0;
  std::vector<PhaseSeconds> phases;
  std::map<std::string, std::int64_t> bytes_by_source;
  TimePoint finished_at;

  bool operator==(const ScaleOut&) const = default;
};

inline constexpr std::size_t kMaxScaleOuts = 10;

struct ServiceStatus {
  std::int64_t observed_generation = 0;
  int desired = 0;
  int replicas = 0;  ///< Instances that exist, guards not counted.
  int ready = 0;     ///< readyReplicas: instances that serve.
  int active = 0;    ///< Instances that serve or start, not failed.
  int guards = 0;    ///< Instances that sleep and can be woken.
  int waking = 0;
  int failed = 0;  ///< Instances that failed and wait to be replaced.
  std::string selector;
  int consecutive_failures = 0;
  std::optional<TimePoint> last_failure;  ///< Microseconds on the wire: it orders starts.
  int consecutive_guard_failures = 0;     ///< The same for guards, which hold up no replica.
  std::optional<TimePoint> last_guard_failure;
  std::vector<Condition> conditions;
  std::vector<ScaleOut> scale_outs;  ///< Newest first, at most kMaxScaleOuts.

  bool operator==(const ServiceStatus&) const = default;
};

/// lastPath and lastSeconds are derived from scale_outs.
Json ToJson(const ServiceStatus& status);
Result<ServiceStatus> StatusFromJson(const Json& value, const std::string& path);

}  // namespace rouse::api
