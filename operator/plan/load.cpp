#include "operator/plan/load.h"

#include <algorithm>

namespace rouse::plan {
namespace {

bool Serves(const Instance& pod, const api::ModelService& service) {
  return pod.owner_uid == service.metadata.uid && pod.role == Role::kActive && !pod.deleting &&
         !pod.leaving && pod.ready && pod.agent_state == AgentState::kServing;
}

std::string Seconds(std::chrono::milliseconds time) {
  return std::to_string(std::chrono::duration_cast<std::chrono::seconds>(time).count()) + " s";
}

ReplicaLoad LoadOf(const Instance& pod, const std::optional<ToldLoad>& told, LoadTime now) {
  const std::string agent = "pod " + pod.ns + "/" + pod.name + ": its agent ";
  if (!told) return {.pod = pod.name, .load = {}, .unknown = agent + "has not reported here yet"};
  const auto age = std::chrono::duration_cast<std::chrono::milliseconds>(now - told->at);
  if (age > told->kept) {
    return {
        .pod = pod.name, .load = {}, .unknown = agent + "reported last " + Seconds(age) + " ago"};
  }
  if (!told->load) {
    return {.pod = pod.name,
            .load = {},
            .unknown = agent +
                       "does not know its engine's load: does the engine serve /metrics, with "
                       "vllm:num_requests_running and vllm:num_requests_waiting?"};
  }
  return {.pod = pod.name, .load = told->load, .unknown = ""};
}

std::uint64_t KnownLoad(const ServiceLoad& load) {
  std::uint64_t sum = 0;
  for (const ReplicaLoad& replica : load.serving) sum += replica.load ? replica.load->total() : 0;
  return sum;
}

Status AllKnown(const ServiceLoad& load) {
  for (const ReplicaLoad& replica : load.serving) {
    if (!replica.load) return Unavailable("the load is not known: " + replica.unknown);
  }
  return {};
}

}  // namespace

std::chrono::milliseconds QuietReport(std::size_t agents) {
  using std::chrono::milliseconds;
  constexpr milliseconds kBetweenTwo{50};
  return std::clamp<milliseconds>(agents * kBetweenTwo, milliseconds(10'000),
                                  milliseconds(300'000));
}

ServiceLoad LoadOf(const api::ModelService& service,
                   const std::vector<std::shared_ptr<const Instance>>& pods,
                   const std::function<std::optional<ToldLoad>(const std::string& uid)>& told,
                   LoadTime now) {
  ServiceLoad out{.wanted = service.spec.replicas, .serving = {}};
  for (const auto& pod : pods) {
    if (Serves(*pod, service)) out.serving.push_back(LoadOf(*pod, told(pod->uid), now));
  }
  std::ranges::sort(out.serving, {}, &ReplicaLoad::pod);
  return out;
}

Result<std::uint64_t> TotalLoad(const ServiceLoad& load) {
  if (load.serving.empty() && load.wanted > 0) {
    return Unavailable("the load is not known: none of " + std::to_string(load.wanted) +
                       " replicas serves yet");
  }
  ROUSE_RETURN_IF_ERROR(AllKnown(load));
  return KnownLoad(load);
}

Result<bool> IsActive(const ServiceLoad& load, double activation) {
  if (std::cmp_less(load.serving.size(), load.wanted)) return true;
  if (static_cast<double>(KnownLoad(load)) > activation) return true;
  ROUSE_RETURN_IF_ERROR(AllKnown(load));
  return false;
}

bool ShouldTell(const std::optional<bool>& told, bool now, std::chrono::milliseconds since_told) {
  return told != now || (now && since_told >= kTellAgain);
}

}  // namespace rouse::plan
