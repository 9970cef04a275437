#include "operator/plan/summary.h"

#include <algorithm>
#include <cstdio>

#include "operator/api/names.h"
#include "operator/plan/engine_env.h"
#include "operator/plan/guards.h"

namespace rouse::plan {
namespace {

constexpr std::size_t kMaxMessage = 1024;
constexpr char kTransportFallback[] = "TransportFallback";
constexpr char kNodeLost[] = "NodeLost";
constexpr char kPerPodVariable[] = "PerPodVariable";
constexpr char kCachesNotUsed[] = "CachesNotUsed";

struct Said {
  bool is_true = false;
  std::string reason;
  std::string message;
};

std::string Plural(int count, const std::string& noun) {
  return std::to_string(count) + " " + noun + (count == 1 ? "" : "s");
}

// Cuts at the end of a character: the API server refuses broken UTF-8.
std::string Shorten(std::string text) {
  if (text.size() <= kMaxMessage) return text;
  std::size_t end = kMaxMessage;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return text.substr(0, end) + "…";
}

Said Available(const Observed& observed, const Summary& summary) {
  const std::string message = std::to_string(summary.ready) + " of " +
                              Plural(observed.service.spec.replicas, "instance") + " serve";
  if (summary.ready > 0) return {true, "InstancesServe", message};
  if (observed.service.spec.replicas == 0) return {false, "ScaledToZero", "spec.replicas is 0"};
  return {false, "NoInstanceServes", message};
}

Said Waiting(const PathChoice& choice) {
  std::string message = Plural(choice.waiting, "replica") +
                        (choice.waiting == 1 ? " waits" : " wait") + " for the weights of " +
                        choice.waiting_for;
  if (choice.waiting_until) {
    message += " until " + api::FormatSeconds(*choice.waiting_until) + ", then " +
               (choice.waiting == 1 ? "starts" : "start") + " from storage";
  }
  return {true, "WaitingForWeightSource", message};
}

std::string Names(const std::vector<const Instance*>& instances) {
  std::string text;
  for (const Instance* instance : instances) text += (text.empty() ? "" : ", ") + instance->name;
  return text;
}

std::string StateOf(const Instance& instance) {
  return instance.agent_state ? std::string(ToString(*instance.agent_state)) : "Scheduled";
}

// What is still to be done until all guards sleep; empty when they do.
std::string GuardsOnTheirWay(const Observed& observed, const Summary& summary) {
  std::string awake;
  for (const Instance* guard : summary.guards) {
    if (guard->agent_state == AgentState::kAsleep) continue;
    awake += (awake.empty() ? "" : ", ") + guard->name + " (" + StateOf(*guard) + ")";
  }
  if (!awake.empty()) return "guards not asleep yet: " + awake;
  const int missing =
      observed.service.spec.guard_replicas - static_cast<int>(summary.guards.size());
  if (missing <= 0) return "";
  if (summary.creating_guards > 0) return Plural(summary.creating_guards, "guard") + " created";
  return Plural(missing, "guard") + " to be made";
}

// The one sentence about what is going on that a user would want to read first.
Said Progressing(const Observed& observed, const Summary& summary) {
  if (observed.service.metadata.deleting) return {true, "Deleting", "the ModelService is deleted"};
  if (summary.retry_at) {
    return {true, "BackingOff",
            "after " + Plural(summary.failures.in_a_row, "failure") +
                " in a row the next attempt is at " + api::FormatSeconds(*summary.retry_at)};
  }
  for (const Instance* instance : summary.working) {
    if (instance->unschedulable.empty()) continue;
    return {true, "Unschedulable", instance->name + " has no node: " + instance->unschedulable};
  }
  if (!summary.claimed.empty()) {
    return {true, "Scaling", "woken: " + Names(summary.claimed)};
  }
  if (!summary.awaited_guards.empty()) {
    return {true, "WaitingForGuard", Names(summary.awaited_guards) + " will be woken once asleep"};
  }
  if (summary.choice && summary.choice->waiting > 0 && summary.choice->start_now == 0) {
    return Waiting(*summary.choice);
  }
  if (summary.creating > 0 || summary.stopping > 0) {
    return {true, "Scaling",
            Plural(summary.creating, "instance") + " created, " + std::to_string(summary.stopping) +
                " stopped"};
  }
  std::string starting;
  for (const Instance* instance : summary.working) {
    if (instance->ready) continue;
    starting += (starting.empty() ? "" : ", ") + instance->name + " (" + StateOf(*instance) + ")";
  }
  if (!starting.empty()) return {true, "InstancesStart", "not serving yet: " + starting};
  if (summary.demoted > 0) {
    return {true, "Scaling", Plural(summary.demoted, "instance") + " to become guards"};
  }
  if (summary.outdated > 0) {
    return {true, "RollingOut",
            Plural(summary.outdated, "instance") + " of an older revision to be replaced"};
  }
  if (const auto stopping = summary.going.size() + summary.leaving.size(); stopping > 0) {
    return {true, "InstancesStop",
            Plural(static_cast<int>(stopping), "instance") + " being stopped"};
  }
  if (const std::string guards = GuardsOnTheirWay(observed, summary); !guards.empty()) {
    return {true, "GuardsStart", guards};
  }
  return {false, "AsWanted", "nothing to do"};
}

// Which instances' weights came over TCP past RDMA, and why; empty when none did.
std::string Fallbacks(const Summary& summary) {
  std::string text;
  int more = -1;
  for (const Instance* instance : summary.working) {
    if (instance->transport_fallback.empty()) continue;
    if (++more == 0) text = instance->name + ": " + instance->transport_fallback;
  }
  if (more > 0) text += " (and " + Plural(more, "more instance") + ")";
  return text;
}

Said Degraded(const Observed& observed, const Summary& summary) {
  if (!summary.failed.empty()) {
    const Failed& first = summary.failed.front();
    std::string message = first.instance->name + " failed: " + first.why;
    if (summary.failed.size() > 1) {
      message += " (and " + std::to_string(summary.failed.size() - 1) + " more)";
    }
    return {true, "InstancesFail", message};
  }
  if (!summary.lost.empty()) {
    const Instance& first = *summary.lost.front();
    std::string message = first.name + " is on node " + first.node +
                          ", which is not ready: another instance takes its place until the node "
                          "is back";
    if (const auto more = static_cast<int>(summary.lost.size()) - 1; more > 0) {
      message += " (and " + Plural(more, "more instance") + " on lost nodes)";
    }
    return {true, kNodeLost, message};
  }
  if (summary.failures.in_a_row == 0 && summary.guard_failures.in_a_row == 0) {
    if (const std::string slow = Fallbacks(summary); !slow.empty()) {
      return {true, kTransportFallback, slow};
    }
    return {false, "NoFailures", "no start has failed lately"};
  }
  // The failed pod is gone; what was said about it stays until a start succeeds.
  const api::Condition* before =
      api::FindCondition(observed.service.status.conditions, api::kConditionDegraded);
  if (before != nullptr && before->reason == "InstancesFail") {
    return {true, before->reason, before->message};
  }
  return {true, "InstancesFail",
          Plural(std::max(summary.failures.in_a_row, summary.guard_failures.in_a_row), "start") +
              " failed in a row"};
}

Said StateReuse(const Observed& observed, const Summary& summary) {
  if (!observed.service.spec.fast_start.state_reuse) {
    return {false, "SwitchedOff", "spec.fastStart.state.reuse is false"};
  }
  if (const auto breakers = KeyBreakers(observed.service.spec); !breakers.empty()) {
    std::string text;
    for (const KeyBreaker& breaker : breakers) {
      text += (text.empty() ? "" : "; ") + breaker.variable + ": " + breaker.why;
    }
    return {false, kPerPodVariable,
            "no instance finds the compile caches of another: " + text +
                ". Give the variable one value in all pods, or set state.reuse to false"};
  }
  std::string text;
  int more = -1;
  for (const Instance* instance : summary.working) {
    if (instance->state_miss.empty()) continue;
    if (++more == 0) text = instance->name + ": " + instance->state_miss;
  }
  if (more > 0) text += " (and " + Plural(more, "more instance") + ")";
  if (!text.empty()) return {false, kCachesNotUsed, text};
  return {true, "AsWanted", "compile caches are handed on"};
}

api::ScaleOut ToScaleOut(const Instance& instance) {
  const Timeline& timeline = *instance.timeline;
  api::ScaleOut out{
      .pod = instance.name,
      .uid = instance.uid,
      .path = std::string(ToString(timeline.path)),
      .reason = instance.path_reason,
      .seconds = static_cast<double>(timeline.total_us) / 1e6,
      .phases = {},
      .bytes_by_source = {{"peer", static_cast<std::int64_t>(instance.bytes.peer)},
                          {"storage", static_cast<std::int64_t>(instance.bytes.storage)}},
      .finished_at = instance.decided_at + std::chrono::microseconds(timeline.total_us)};
  for (const Span& phase : timeline.phases) {
    out.phases.push_back({phase.name, static_cast<double>(phase.end_us - phase.start_us) / 1e6});
  }
  if (timeline.path != StartPath::kWake) return out;
  // Of this wake, not of the start that the pod's annotations tell of.
  const std::uint64_t bytes = instance.weights ? instance.weights->bytes : 0;
  if (instance.path != StartPath::kWake) out.reason = "a guard was woken";
  out.bytes_by_source = {{"peer", static_cast<std::int64_t>(bytes)}, {"storage", 0}};
  out.finished_at = api::FromMicros(timeline.decided_at_us + timeline.total_us);
  return out;
}

// What tells one from another: an instance starts once, and wakes again and again.
std::string KeyOf(const api::ScaleOut& scale_out) {
  if (scale_out.path != ToString(StartPath::kWake)) return scale_out.uid;
  return scale_out.uid + "/" + std::to_string(api::ToMicros(scale_out.finished_at));
}

// Each start and each wake once. An older one that fell off the end cannot come back: ten newer
// ones are in its way.
std::vector<api::ScaleOut> LastScaleOuts(const Observed& observed) {
  std::vector<api::ScaleOut> all = observed.service.status.scale_outs;
  std::set<std::string> known;
  for (const api::ScaleOut& scale_out : all) known.insert(KeyOf(scale_out));
  for (const Instance& instance : observed.instances) {
    // A guard's start is no scale-out, nor is the one that a woken guard once was.
    if (!instance.timeline || instance.role == Role::kGuard) continue;
    if (instance.path == StartPath::kWake && instance.timeline->path != StartPath::kWake) continue;
    api::ScaleOut scale_out = ToScaleOut(instance);
    if (known.insert(KeyOf(scale_out)).second) all.push_back(std::move(scale_out));
  }
  std::sort(all.begin(), all.end(), [](const api::ScaleOut& a, const api::ScaleOut& b) {
    return std::tie(b.finished_at, a.pod, a.uid) < std::tie(a.finished_at, b.pod, b.uid);
  });
  if (all.size() > api::kMaxScaleOuts) all.resize(api::kMaxScaleOuts);
  return all;
}

void Say(api::ServiceStatus& status, const char* type, Said said, std::int64_t generation,
         TimePoint now) {
  api::SetCondition(status.conditions,
                    {.type = type,
                     .status = said.is_true ? "True" : "False",
                     .reason = std::move(said.reason),
                     .message = Shorten(std::move(said.message)),
                     .observed_generation = generation,
                     .last_transition = now},
                    now);
}

std::string Bytes(std::int64_t bytes) {
  char out[32];
  std::snprintf(out, sizeof out, "%.1f MB", static_cast<double>(bytes) / 1e6);
  return out;
}

}  // namespace

TimePoint RetryAt(const Failures& failures, const Policy& policy) {
  if (failures.in_a_row < 2 || !failures.last) return TimePoint::min();
  auto wait = policy.backoff_first;
  for (int i = 2; i < failures.in_a_row && wait < policy.backoff_max; ++i) wait *= 2;
  return *failures.last + std::min(wait, policy.backoff_max);
}

api::ServiceStatus MakeStatus(const Observed& observed, const Summary& summary, TimePoint now) {
  const std::int64_t generation = observed.service.metadata.generation;
  api::ServiceStatus status = observed.service.status;
  status.observed_generation = generation;
  status.desired = observed.service.spec.replicas;
  status.failed = static_cast<int>(
      std::count_if(summary.failed.begin(), summary.failed.end(),
                    [](const Failed& f) { return f.instance->role == Role::kActive; }));
  status.replicas = summary.active + status.failed;
  status.ready = summary.ready;
  status.active = summary.active;
  status.guards = 0;
  status.waking = summary.waking;
  for (const Instance& instance : observed.instances) {
    status.guards += instance.role == Role::kGuard && !instance.deleting && !instance.leaving &&
                     !instance.node_lost && instance.agent_state == AgentState::kAsleep;
  }
  status.selector = std::string(api::kLabelModelService) + "=" + observed.service.metadata.name +
                    "," + api::kLabelRole + "=Active";
  status.consecutive_failures = summary.failures.in_a_row;
  status.last_failure = summary.failures.last;
  status.consecutive_guard_failures = summary.guard_failures.in_a_row;
  status.last_guard_failure = summary.guard_failures.last;
  status.scale_outs = LastScaleOuts(observed);
  Say(status, api::kConditionAvailable, Available(observed, summary), generation, now);
  Say(status, api::kConditionProgressing, Progressing(observed, summary), generation, now);
  Say(status, api::kConditionDegraded, Degraded(observed, summary), generation, now);
  Say(status, api::kConditionStateReuse, StateReuse(observed, summary), generation, now);
  return status;
}

std::vector<api::ScaleOut> NewScaleOuts(const api::ServiceStatus& before,
                                        const api::ServiceStatus& after) {
  std::vector<api::ScaleOut> fresh;
  for (const api::ScaleOut& scale_out : after.scale_outs) {
    const bool known =
        std::any_of(before.scale_outs.begin(), before.scale_outs.end(),
                    [&](const api::ScaleOut& b) { return KeyOf(b) == KeyOf(scale_out); });
    if (!known) fresh.push_back(scale_out);
  }
  std::reverse(fresh.begin(), fresh.end());
  return fresh;
}

std::vector<Note> MakeNotes(const Observed& observed, const Summary& summary,
                            const api::ServiceStatus& after,
                            const std::vector<api::ScaleOut>& new_scale_outs) {
  std::vector<Note> notes;
  for (const Failed& failed : summary.failed) {
    if (!summary.uncounted.contains(failed.instance)) continue;
    notes.push_back({true, "InstanceFailed", "Replace",
                     failed.instance->name + " failed and will be replaced: " + failed.why});
  }
  for (const api::ScaleOut& s : new_scale_outs) {
    char seconds[32];
    std::snprintf(seconds, sizeof seconds, "%.2f s", s.seconds);
    const auto bytes = [&](const char* source) {
      const auto it = s.bytes_by_source.find(source);
      return Bytes(it == s.bytes_by_source.end() ? 0 : it->second);
    };
    notes.push_back({false, "InstanceServes", "ScaleOut",
                     s.pod + " serves after " + seconds + ", path " + s.path + " (" + s.reason +
                         "), weights: " + bytes("peer") + " from peers, " + bytes("storage") +
                         " from storage"});
  }
  const auto& before = observed.service.status.conditions;
  const api::Condition* was = api::FindCondition(before, api::kConditionProgressing);
  const api::Condition* is = api::FindCondition(after.conditions, api::kConditionProgressing);
  if (is != nullptr && (was == nullptr || was->reason != is->reason)) {
    for (const char* told :
         {"Unschedulable", "BackingOff", "WaitingForWeightSource", "RollingOut"}) {
      if (is->reason != told) continue;
      const bool warning = is->reason == "Unschedulable" || is->reason == "BackingOff";
      notes.push_back({warning, is->reason, "Plan", is->message});
    }
  }
  was = api::FindCondition(before, api::kConditionDegraded);
  is = api::FindCondition(after.conditions, api::kConditionDegraded);
  if (is != nullptr && (was == nullptr || was->reason != is->reason)) {
    if (is->reason == kTransportFallback) {
      notes.push_back({true, is->reason, "Pull", is->message});
    } else if (is->reason == kNodeLost) {
      notes.push_back({true, is->reason, "Replace", is->message});
    }
  }
  was = api::FindCondition(before, api::kConditionStateReuse);
  is = api::FindCondition(after.conditions, api::kConditionStateReuse);
  if (is != nullptr && (is->reason == kPerPodVariable || is->reason == kCachesNotUsed) &&
      (was == nullptr || was->reason != is->reason)) {
    notes.push_back({true, is->reason, "Hydrate", is->message});
  }
  return notes;
}

api::ServiceStatus InvalidSpecStatus(api::ServiceStatus previous, std::int64_t generation,
                                     const std::string& error, TimePoint now) {
  previous.observed_generation = generation;
  Say(previous, api::kConditionDegraded, {true, "InvalidSpec", error}, generation, now);
  return previous;
}

void AddActionErrors(api::ServiceStatus& status, const std::vector<std::string>& errors,
                     TimePoint now) {
  if (errors.empty()) return;
  std::string message = errors.front();
  if (errors.size() > 1) message += " (and " + std::to_string(errors.size() - 1) + " more)";
  Say(status, api::kConditionDegraded, {true, "ActionFailed", std::move(message)},
      status.observed_generation, now);
}

}  // namespace rouse::plan
