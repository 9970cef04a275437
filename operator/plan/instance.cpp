#include "operator/plan/instance.h"

#include <charconv>

#include "operator/api/names.h"
#include "operator/plan/objects.h"

namespace rouse::plan {
namespace {

int Count(const Json& value, std::string_view key) {
  const Json& number = At(value, key);
  return number.is_number_integer() ? static_cast<int>(number.get<std::int64_t>()) : 0;
}

template <typename E>
std::optional<E> ParseEnum(const std::string& text, std::span<const json::EnumName<E>> names) {
  for (const auto& [value, name] : names) {
    if (name == text) return value;
  }
  return std::nullopt;
}

void ReadConditions(const Json& status, Instance& out) {
  for (const Json& condition : At(status, "conditions")) {
    const std::string type = Text(condition, "type");
    const bool is_true = Text(condition, "status") == "True";
    if (type == "Ready") out.ready = is_true;
    if (type == api::kConditionServing) out.may_serve = is_true;
    if (type == "PodScheduled" && !is_true && Text(condition, "reason") == "Unschedulable") {
      out.unschedulable = Text(condition, "message");
      if (out.unschedulable.empty()) out.unschedulable = "the scheduler gave no reason";
    }
  }
}

void ReadContainers(const Json& statuses, Instance& out) {
  if (!statuses.is_array()) return;
  for (const Json& container : statuses) {
    const std::string name = Text(container, "name");
    const Json& state = At(container, "state");
    const Json& waiting = At(state, "waiting");
    if (name == api::kAgentContainer && waiting.is_object()) out.agent_down = true;
    if (Text(waiting, "reason") != "CrashLoopBackOff") continue;
    const Json& last = At(At(container, "lastState"), "terminated");
    out.restarts = Count(container, "restartCount");
    out.crash_looping = name + ": exit code " + std::to_string(Count(last, "exitCode"));
    if (const std::string reason = Text(last, "reason"); !reason.empty()) {
      out.crash_looping += " (" + reason + ")";
    }
  }
}

void ReadReport(const Json& annotations, Instance& out) {
  for (const char* key :
       {api::kAnnotationAgentState, api::kAnnotationAgentMessage, api::kAnnotationAgentAddress,
        api::kAnnotationWeights, api::kAnnotationBytesBySource, api::kAnnotationTransport,
        api::kAnnotationTransportFallback, api::kAnnotationStateOrigin, api::kAnnotationStateMiss,
        api::kAnnotationTimeline, api::kAnnotationNodeFacts}) {
    if (At(annotations, key).is_string()) out.reported[key] = Text(annotations, key);
  }
  out.agent_state =
      ParseEnum<AgentState>(Text(annotations, api::kAnnotationAgentState), kAgentStates);
  out.agent_message = Text(annotations, api::kAnnotationAgentMessage);
  out.address = Text(annotations, api::kAnnotationAgentAddress);
  out.transport_fallback = Text(annotations, api::kAnnotationTransportFallback);
  out.state_miss = Text(annotations, api::kAnnotationStateMiss);

  const auto document = [&](const char* key) -> std::optional<Json> {
    const std::string text = Text(annotations, key);
    if (text.empty()) return std::nullopt;
    auto parsed = json::Parse(text, key);
    if (!parsed.ok()) return std::nullopt;
    return *std::move(parsed);
  };
  if (const auto value = document(api::kAnnotationWeights)) {
    if (auto weights = WeightsReportFromJson(*value, ""); weights.ok()) out.weights = *weights;
  }
  if (const auto value = document(api::kAnnotationBytesBySource)) {
    if (auto bytes = BytesBySourceFromJson(*value, ""); bytes.ok()) out.bytes = *bytes;
  }
  if (const auto value = document(api::kAnnotationTimeline)) {
    if (auto timeline = TimelineFromJson(*value, ""); timeline.ok()) out.timeline = *timeline;
  }
}

TimePoint DecidedAt(const Json& metadata) {
  const std::string text = Text(At(metadata, "annotations"), api::kAnnotationDecidedAtUs);
  std::int64_t us = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), us);
  if (!text.empty() && error == std::errc() && end == text.data() + text.size() && us > 0 &&
      us <= kLastMicros) {
    return api::FromMicros(us);
  }
  return api::ParseTime(Text(metadata, "creationTimestamp")).value_or(TimePoint());
}

}  // namespace

Result<Instance> InstanceFromPod(const Json& pod) {
  const Json& metadata = At(pod, "metadata");
  const Json& labels = At(metadata, "labels");
  const Json& annotations = At(metadata, "annotations");
  const Json& status = At(pod, "status");
  Instance out;
  out.ns = Text(metadata, "namespace");
  out.name = Text(metadata, "name");
  out.uid = Text(metadata, "uid");
  out.resource_version = Text(metadata, "resourceVersion");
  out.service = Text(labels, api::kLabelModelService);
  if (out.name.empty() || out.uid.empty() || out.service.empty()) {
    return InvalidArgument("pod " + out.ns + "/" + out.name +
                           ": has no name, no uid or no label rouse.dev/modelservice");
  }
  out.owner_uid = ControllerUid(metadata);
  out.role = ParseEnum<Role>(Text(labels, api::kLabelRole), kRoles).value_or(Role::kActive);
  out.launch_identity = Text(labels, api::kLabelLaunchIdentity);
  out.revision = Text(annotations, api::kAnnotationRevision);
  out.path = ParseEnum<StartPath>(Text(annotations, api::kAnnotationPath), kStartPaths)
                 .value_or(StartPath::kStorage);
  out.path_reason = Text(annotations, api::kAnnotationPathReason);
  out.begins_without = Text(annotations, api::kAnnotationBeginsWithout) == "true";
  out.decided_at = DecidedAt(metadata);
  out.leaving = LeavingFromText(Text(annotations, api::kAnnotationLeaving));
  out.failed_wakes =
      FailedWakesFromText(Text(annotations, api::kAnnotationFailedWakes)).value_or(FailedWakes());

  for (const Json& gate : At(At(pod, "spec"), "readinessGates")) {
    if (Text(gate, "conditionType") == api::kConditionServing) out.gated = true;
  }
  for (const Json& volume : At(At(pod, "spec"), "volumes")) {
    if (Text(volume, "name") == api::kStoreVolume) out.keeps_caches = true;
  }
  out.node = Text(At(pod, "spec"), "nodeName");
  out.zone = Text(labels, api::kLabelZone);
  out.rack = Text(labels, api::kLabelRack);
  out.ip = Text(status, "podIP");
  out.phase = Text(status, "phase");
  out.phase_message = Text(status, "reason");
  if (const std::string message = Text(status, "message"); !message.empty()) {
    out.phase_message += (out.phase_message.empty() ? "" : ": ") + message;
  }
  out.deleting = At(metadata, "deletionTimestamp").is_string();
  out.started_at = api::ParseTime(Text(status, "startTime"));
  ReadConditions(status, out);
  ReadContainers(At(status, "initContainerStatuses"), out);
  ReadContainers(At(status, "containerStatuses"), out);
  ReadReport(annotations, out);
  return out;
}

std::optional<int> Ordinal(const std::string& pod, const std::string& service) {
  if (!pod.starts_with(service + "-")) return std::nullopt;
  const std::string_view digits = std::string_view(pod).substr(service.size() + 1);
  int ordinal = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), ordinal);
  if (error != std::errc() || end != digits.data() + digits.size() || ordinal < 0)
    return std::nullopt;
  if (std::to_string(ordinal) != digits) return std::nullopt;  // "00" names another pod than "0".
  return ordinal;
}

}  // namespace rouse::plan
