#include "operator/kubectl/forecast.h"

#include <algorithm>

#include "operator/kubectl/view.h"
#include "operator/plan/observe.h"

namespace rouse::kubectl {
namespace {

using plan::Instance;

/// More than any change takes: every replica of a large one is created in one step.
constexpr int kMostSteps = 100;
/// Waits in a row after which nothing more is expected to come of waiting.
constexpr int kMostWaits = 5;

// A cluster in which all that is asked for succeeds.
class World {
 public:
  explicit World(plan::Observed& observed) : observed_(observed) {}

  void Do(const plan::Action& action) {
    std::visit([this](const auto& a) { Apply(a); }, action);
  }

  // All that has been begun is done: engines serve, guards sleep, and the kubelet has seen it.
  void Settle() {
    std::erase_if(observed_.instances, [](const Instance& i) { return i.deleting; });
    for (Instance& i : observed_.instances) {
      // Whether it comes up is not for this to say.
      if (!i.crash_looping.empty() || i.node_lost || i.agent_state == AgentState::kFailed ||
          i.phase == "Failed" || i.phase == "Succeeded") {
        continue;
      }
      if (i.agent_state == AgentState::kAsleep && i.role == Role::kGuard) continue;
      if (i.agent_state == AgentState::kSleeping) {
        FallAsleep(i);
      } else {
        Serve(i);
      }
    }
  }

 private:
  void Apply(const plan::CreateInstance& action) {
    Instance i = plan::JustCreated(action, observed_.service.metadata);
    i.uid = "to-be-created/" + action.pod;
    i.may_serve = action.role == Role::kActive;
    observed_.instances.push_back(std::move(i));
  }

  void Apply(const plan::ClaimGuard& action) {
    Instance* guard = Find(action.uid);
    if (guard == nullptr) return;
    guard->role = Role::kActive;
    guard->decided_at = action.decided_at;
    guard->path_reason = action.reason;
    if (!action.wake) return;
    guard->path = StartPath::kWake;
    guard->agent_state = AgentState::kWaking;
  }

  void Apply(const plan::ReleaseGuard& action) {
    Instance* guard = Find(action.uid);
    if (guard == nullptr) return;
    guard->role = Role::kGuard;
    guard->failed_wakes = action.failed_wakes;
  }

  void Apply(const plan::MakeGuard& action) {
    if (Instance* instance = Find(action.uid)) instance->role = Role::kGuard;
  }

  void Apply(const plan::PutToSleep& action) {
    if (Instance* instance = Find(action.uid)) instance->agent_state = AgentState::kSleeping;
  }

  void Apply(const plan::SetServing& action) {
    if (Instance* instance = Find(action.uid)) instance->may_serve = action.may_serve;
  }

  void Apply(const plan::Leave& action) {
    if (Instance* instance = Find(action.uid)) instance->leaving = action.leaving;
  }

  void Apply(const plan::EnsureEndpoint&) {
    Json rendered = plan::RenderEndpoint(observed_.service);
    rendered["metadata"]["uid"] = "to-be-created";
    observed_.endpoint = plan::EndpointFromService(rendered);
  }

  void Apply(const plan::DeleteInstance& action) {
    if (Instance* instance = Find(action.uid)) instance->deleting = true;
  }

  Instance* Find(const std::string& uid) {
    const auto it = std::find_if(observed_.instances.begin(), observed_.instances.end(),
                                 [&](const Instance& i) { return i.uid == uid; });
    return it == observed_.instances.end() ? nullptr : &*it;
  }

  static void FallAsleep(Instance& i) {
    i.agent_state = AgentState::kAsleep;
    i.weights.reset();
    i.ready = false;
  }

  static void Serve(Instance& i) {
    i.phase = "Running";
    i.agent_state = AgentState::kServing;
    i.agent_down = false;
    i.unschedulable.clear();
    if (i.node.empty()) i.node = "node of " + i.name;  // Nobody knows yet which.
    if (i.address.empty()) i.address = "https://" + i.name;
    if (!i.started_at) i.started_at = i.decided_at;
    if (!i.weights || !i.weights->servable) {
      i.weights = WeightsReport{.form = WeightForm::kLoaded,
                                .identity = i.launch_identity,
                                .bytes = 0,
                                .ranks = 1,
                                .servable = true};
    }
    if (!i.timeline) {
      i.timeline = Timeline{.path = i.path,
                            .decided_at_us = api::ToMicros(i.decided_at),
                            .phases = {},
                            .lanes = {},
                            .total_us = 0};
    }
    i.ready = !i.gated || i.may_serve;
  }

  plan::Observed& observed_;
};

std::map<std::string, double> LastSeconds(const api::ServiceStatus& status) {
  std::map<std::string, double> out;
  for (const api::ScaleOut& s : status.scale_outs) out.emplace(s.path, s.seconds);  // Newest first.
  return out;
}

}  // namespace

Forecast MakeForecast(plan::Observed observed, int replicas, TimePoint now) {
  api::ModelService& service = observed.service;
  Forecast out{.service = service.metadata.ns + "/" + service.metadata.name,
               .replicas = replicas,
               .replicas_now = service.spec.replicas,
               .steps = {},
               .settles = false,
               .end = {},
               .last_seconds = LastSeconds(service.status)};
  if (service.spec.replicas != replicas) ++service.metadata.generation;
  service.spec.replicas = replicas;
  World world(observed);
  std::chrono::milliseconds wait{0};
  for (int waits = 0; out.steps.size() < kMostSteps;) {
    plan::Plan plan = plan::MakePlan(observed, now);
    const bool told = api::ToJson(plan.status) != api::ToJson(service.status);
    service.status = plan.status;
    if (!plan.actions.empty()) {
      for (const plan::Action& action : plan.actions) world.Do(action);
      out.steps.push_back({wait, std::move(plan.actions)});
      wait = std::chrono::milliseconds(0);
      waits = 0;
      now += std::chrono::milliseconds(1);
    } else if (!told && (!plan.replan_after || ++waits > kMostWaits)) {
      out.settles = true;
      break;
    } else if (!told) {
      wait += *plan.replan_after;
      now += *plan.replan_after;
    }
    world.Settle();
  }
  out.end = service.status;
  return out;
}

std::string ForecastText(const Forecast& forecast, const Screen& screen) {
  std::string out = Paint(screen, Colour::kBold, Printable(forecast.service)) + " at " +
                    Plural(forecast.replicas, "replica") + " (now " +
                    std::to_string(forecast.replicas_now) +
                    "), as the operator would decide it; nothing is changed\n";
  if (forecast.steps.empty()) out += "  nothing to do\n";
  bool first = true;
  for (const ForecastStep& step : forecast.steps) {
    std::string when = first ? "" : "once that is done";
    if (step.wait.count() > 0) when += (first ? "after " : ", after ") + Age(step.wait);
    if (when.empty()) when = "at once";
    first = false;
    out += "  " + Paint(screen, Colour::kFaint, when) + "\n";
    for (const plan::Action& action : step.actions) {
      out += "    " + Printable(plan::ToString(action)) + "\n";
    }
  }
  const api::ServiceStatus& end = forecast.end;
  if (!forecast.settles) {
    out += "  and so on: there was no end to it after " +
           Plural(static_cast<std::int64_t>(forecast.steps.size()), "step") + "\n";
  } else {
    out += "then " + ServeText(end.ready, forecast.replicas);
    if (end.guards > 0) {
      out += ", " + Plural(end.guards, "guard") + (end.guards == 1 ? " sleeps" : " sleep");
    }
    out += "\n";
  }
  std::string took;
  for (const auto& [path, seconds] : forecast.last_seconds) {
    took += (took.empty() ? "" : ", ") + Printable(path) + " " +
            Seconds(static_cast<std::int64_t>(seconds * 1e6)) + " s";
  }
  if (!took.empty()) out += "to the first token, the last time: " + took + "\n";
  return out +
         "assumed: every start succeeds and finds a node; times are the operator's defaults\n";
}

Json ToJson(const Forecast& forecast) {
  Json steps = Json::array();
  for (const ForecastStep& step : forecast.steps) {
    Json actions = Json::array();
    for (const plan::Action& action : step.actions) {
      const std::string pod = std::visit(
          [](const auto& a) -> std::string {
            if constexpr (requires { a.pod; }) return a.pod;
            return "";
          },
          action);
      actions.push_back(
          {{"kind", plan::KindOf(action)}, {"pod", pod}, {"text", plan::ToString(action)}});
    }
    steps.push_back({{"waitMs", step.wait.count()}, {"actions", actions}});
  }
  return {{"modelService", forecast.service},     {"replicas", forecast.replicas},
          {"replicasNow", forecast.replicas_now}, {"steps", steps},
          {"settles", forecast.settles},          {"ready", forecast.end.ready},
          {"guards", forecast.end.guards}};
}

}  // namespace rouse::kubectl
