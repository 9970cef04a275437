// What is known of the load of a ModelService, and what an autoscaler is told of it. Pure.
//
// Load is requests, running and waiting, of the replicas that serve. Guards have none, whoever
// starts or wakes takes none yet, and whoever leaves only ends what it has: none of them is
// counted. What is not known is said to be unknown and never taken for 0, which would scale in.

#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/messages.h"
#include "operator/api/model_service.h"
#include "operator/plan/instance.h"

namespace rouse::plan {

/// Of this machine's own clock, which does not jump.
using LoadTime = std::chrono::steady_clock::time_point;

/// How often one of so many agents reports whose instance stays what it is. Every ten seconds, or
/// where there are very many so rarely that the operator hears of 20 in a second, and of each
/// within five minutes: changes are told at once anyway.
std::chrono::milliseconds QuietReport(std::size_t agents);
/// What one of so many told longer ago is not known any more: three such reports.
inline std::chrono::milliseconds LoadKept(std::size_t agents) {
  return 3 * QuietReport(agents);
}

/// What an agent told last, and when.
struct ToldLoad {
  std::optional<EngineLoad> load;  ///< None: it does not know.
  LoadTime at;
  std::chrono::milliseconds kept;  ///< It is not known any more after that.

  bool operator==(const ToldLoad&) const = default;
};

/// A replica that serves.
struct ReplicaLoad {
  std::string pod;
  std::optional<EngineLoad> load;
  std::string unknown;  ///< Why there is none.

  bool operator==(const ReplicaLoad&) const = default;
};

struct ServiceLoad {
  int wanted = 0;  ///< spec.replicas.
  std::vector<ReplicaLoad> serving;

  bool operator==(const ServiceLoad&) const = default;
};

/// `pods` are those with its label, whoever owns them; `told` is asked by their uid.
ServiceLoad LoadOf(const api::ModelService& service,
                   const std::vector<std::shared_ptr<const Instance>>& pods,
                   const std::function<std::optional<ToldLoad>(const std::string& uid)>& told,
                   LoadTime now);

/// Requests of all replicas that serve; 0 when none is wanted and none serves. Unavailable while
/// the load of one is not known, or while none of those that are wanted serves yet.
Result<std::uint64_t> TotalLoad(const ServiceLoad& load);

/// Whether replicas are needed: the load is over `activation`, or a replica that is wanted does not
/// serve yet (else an autoscaler would take back at once what it, or somebody, has just asked for).
/// Unavailable when that depends on a load that is not known.
Result<bool> IsActive(const ServiceLoad& load, double activation);

/// How often a listener is told again that it is active.
inline constexpr std::chrono::milliseconds kTellAgain{30'000};

/// Whether a listener, who was told `told` that long ago, is told `now`: every change, and that it
/// is active again and again, since autoscalers count their cooldown from when they last heard it.
bool ShouldTell(const std::optional<bool>& told, bool now, std::chrono::milliseconds since_told);

}  // namespace rouse::plan
