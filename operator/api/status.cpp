#include "operator/api/status.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace rouse::api {
namespace {

// As in the definition of the resource.
constexpr std::size_t kMaxConditions = 16;
constexpr std::size_t kMaxStarts = 32;
constexpr std::size_t kMaxPhases = 32;

// Milliseconds are all that a person reads, and rounding keeps the status stable when it is read
// back and compared.
double RoundSeconds(double seconds) {
  return std::round(seconds * 1000.0) / 1000.0;
}

TimePoint ReadTime(json::Reader& in, std::string_view key) {
  const auto time = ParseTime(in.String(key));
  if (!time && in.status().ok()) in.Fail(key, "expected a time such as 2026-01-02T03:04:05Z");
  return time.value_or(TimePoint());
}

Json ToJson(const Condition& condition) {
  return {{"type", condition.type},
          {"status", condition.status},
          {"reason", condition.reason},
          {"message", condition.message},
          {"observedGeneration", condition.observed_generation},
          {"lastTransitionTime", FormatSeconds(condition.last_transition)}};
}

Condition ReadCondition(json::Reader& in) {
  return {.type = in.String("type"),
          .status = in.String("status"),
          .reason = in.String("reason"),
          .message = in.StringOr("message", ""),
          .observed_generation = in.IntOr("observedGeneration", 0),
          .last_transition = ReadTime(in, "lastTransitionTime")};
}

PhaseSeconds ReadPhase(json::Reader& in) {
  return {in.String("name"), in.Number("seconds")};
}

Json ToJson(const ScaleOut& scale_out) {
  Json phases = Json::array();
  for (const PhaseSeconds& phase : scale_out.phases) {
    phases.push_back({{"name", phase.name}, {"seconds", RoundSeconds(phase.seconds)}});
  }
  return {{"pod", scale_out.pod},
          {"uid", scale_out.uid},
          {"path", scale_out.path},
          {"reason", scale_out.reason},
          {"seconds", RoundSeconds(scale_out.seconds)},
          {"phases", phases},
          {"bytesBySource", scale_out.bytes_by_source},
          {"finishedAt", FormatMicros(scale_out.finished_at)}};
}

ScaleOut ReadScaleOut(json::Reader& in) {
  ScaleOut out{.pod = in.String("pod"),
               .uid = in.StringOr("uid", ""),
               .path = in.String("path"),
               .reason = in.StringOr("reason", ""),
               .seconds = in.Number("seconds"),
               .phases = in.ObjectsOrEmpty("phases", kMaxPhases, ReadPhase),
               .bytes_by_source = {},
               .finished_at = ReadTime(in, "finishedAt")};
  const Json& bytes = in.ObjectOrEmpty("bytesBySource");
  json::Reader by_source(bytes, in.Path("bytesBySource"));
  for (const auto& [source, value] : bytes.items()) {
    out.bytes_by_source[source] = by_source.Int(source);
  }
  in.Take(by_source.status());
  return out;
}

int ReadCount(json::Reader& in, std::string_view key) {
  return static_cast<int>(in.IntOr(key, 0, 0, 1'000'000'000));
}

}  // namespace

void SetCondition(std::vector<Condition>& conditions, Condition condition, TimePoint now) {
  const auto same_type = [&](const Condition& c) { return c.type == condition.type; };
  const auto it = std::find_if(conditions.begin(), conditions.end(), same_type);
  condition.last_transition = std::chrono::floor<std::chrono::seconds>(now);
  if (it == conditions.end()) {
    conditions.push_back(std::move(condition));
    return;
  }
  if (it->status == condition.status) condition.last_transition = it->last_transition;
  *it = std::move(condition);
}

const Condition* FindCondition(const std::vector<Condition>& conditions, std::string_view type) {
  for (const Condition& condition : conditions) {
    if (condition.type == type) return &condition;
  }
  return nullptr;
}

Json ToJson(const ServiceStatus& status) {
  Json conditions = Json::array();
  for (const Condition& condition : status.conditions) conditions.push_back(ToJson(condition));
  Json scale_outs = Json::array();
  for (const ScaleOut& scale_out : status.scale_outs) scale_outs.push_back(ToJson(scale_out));
  Json out = {{"observedGeneration", status.observed_generation},
              {"desired", status.desired},
              {"replicas", status.replicas},
              {"readyReplicas", status.ready},
              {"active", status.active},
              {"guards", status.guards},
              {"waking", status.waking},
              {"failed", status.failed},
              {"selector", status.selector},
              {"consecutiveFailures", status.consecutive_failures},
              {"consecutiveGuardFailures", status.consecutive_guard_failures},
              {"conditions", conditions},
              {"scaleOuts", scale_outs}};
  if (status.last_failure) out["lastFailureTime"] = FormatMicros(*status.last_failure);
  if (status.last_guard_failure) {
    out["lastGuardFailureTime"] = FormatMicros(*status.last_guard_failure);
  }
  if (!status.scale_outs.empty()) {
    char seconds[32];
    std::snprintf(seconds, sizeof seconds, "%.2f", status.scale_outs.front().seconds);
    out["lastPath"] = status.scale_outs.front().path;
    out["lastSeconds"] = seconds;
  }
  return out;
}

Result<ServiceStatus> StatusFromJson(const Json& value, const std::string& path) {
  json::Reader in(value, path);
  ServiceStatus out;
  out.observed_generation = in.IntOr("observedGeneration", 0);
  out.desired = ReadCount(in, "desired");
  out.replicas = ReadCount(in, "replicas");
  out.ready = ReadCount(in, "readyReplicas");
  out.active = ReadCount(in, "active");
  out.guards = ReadCount(in, "guards");
  out.waking = ReadCount(in, "waking");
  out.failed = ReadCount(in, "failed");
  out.selector = in.StringOr("selector", "");
  out.consecutive_failures = ReadCount(in, "consecutiveFailures");
  out.consecutive_guard_failures = ReadCount(in, "consecutiveGuardFailures");
  if (in.Has("lastGuardFailureTime")) out.last_guard_failure = ReadTime(in, "lastGuardFailureTime");
  if (in.Has("lastFailureTime")) out.last_failure = ReadTime(in, "lastFailureTime");
  out.conditions = in.ObjectsOrEmpty("conditions", kMaxConditions, ReadCondition);
  out.scale_outs = in.ObjectsOrEmpty("scaleOuts", kMaxStarts, ReadScaleOut);
  ROUSE_RETURN_IF_ERROR(in.status());
  return out;
}

}  // namespace rouse::api
