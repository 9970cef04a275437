#include "operator/kubectl/commands.h"

#include <functional>
#include <iostream>

#include "common/version.h"
#include "operator/kubectl/doctor.h"
#include "operator/kubectl/explain.h"
#include "operator/kubectl/forecast.h"
#include "operator/kubectl/starts.h"
#include "operator/kubectl/status.h"
#include "operator/kubectl/svg.h"
#include "operator/kubectl/terminal.h"
#include "operator/kubectl/timeline.h"
#include "operator/kubectl/watch.h"

namespace rouse::kubectl {
namespace {

TimePoint Now() {
  return std::chrono::time_point_cast<std::chrono::microseconds>(std::chrono::system_clock::now());
}

void Write(const std::string& text) {
  std::cout << text << std::flush;
}

// With everything beyond ASCII escaped: the text of others may reach a terminal so as well.
void Write(const Json& value) {
  Write(value.dump(2, ' ', true, Json::error_handler_t::replace) + "\n");
}

Status NoInstance(const ServiceView& view, const std::string& pod) {
  std::string there;
  for (const auto& instance : view.instances) there += (there.empty() ? "" : ", ") + instance.name;
  return NotFound("ModelService " + view.Name() + " has no instance " + pod + "; it has " +
                  (there.empty() ? "none" : there));
}

// Those of `pod`, which may be gone by now; of all pods when that is empty.
std::vector<Start> StartsOfPod(const ServiceView& view, const std::string& pod, TimePoint now) {
  std::vector<Start> starts = StartsOf(view, now);
  if (!pod.empty()) std::erase_if(starts, [&](const Start& start) { return start.pod != pod; });
  return starts;
}

std::string ShowTimeline(const ServiceView& view, const std::string& pod, TimePoint now,
                         const Screen& screen) {
  const std::vector<Start> starts = StartsOfPod(view, pod, now);
  return pod.empty() ? TimelineText(view, starts, screen) : TimelineDetail(view, starts, screen);
}

Status RunWatch(
    Session& s,
    const std::function<std::string(const std::vector<ServiceView>&, TimePoint)>& render) {
  if (s.flags.output != "text") {
    return InvalidArgument("--watch shows text: leave out -o " + s.flags.output);
  }
  // Whether it is there at all, and may be read: a watch would go on asking.
  ROUSE_RETURN_IF_ERROR(s.flags.name.empty() ? s.cluster.Services(s.ns).status()
                                             : s.cluster.Service({s.ns, s.flags.name}).status());
  return Watch(s.client, {.ns = s.ns, .name = s.flags.name, .render = render});
}

}  // namespace

Status RunStatus(Session& s) {
  if (s.flags.watch) {
    return RunWatch(s, [&](const auto& views, TimePoint now) {
      return StatusText(views, now, ScreenOfOutput());
    });
  }
  std::vector<ServiceView> views;
  if (!s.flags.name.empty()) {
    ROUSE_ASSIGN_OR_RETURN(ServiceView view, s.cluster.Service({s.ns, s.flags.name}));
    views.push_back(std::move(view));
  } else {
    ROUSE_ASSIGN_OR_RETURN(views, s.cluster.Services(s.ns));
  }
  if (s.flags.output == "json") {
    Write(StatusJson(views));
  } else if (views.empty()) {
    std::cerr << "No ModelServices found"
              << (s.ns.empty() ? std::string() : " in namespace " + Printable(s.ns)) << ".\n";
  } else {
    Write(StatusText(views, Now(), s.screen));
  }
  return {};
}

Status RunTimeline(Session& s) {
  const std::string& pod = s.flags.pod;
  if (s.flags.watch) {
    return RunWatch(s, [&](const auto& views, TimePoint now) {
      return ShowTimeline(views.front(), pod, now, ScreenOfOutput());
    });
  }
  ROUSE_ASSIGN_OR_RETURN(const ServiceView view, s.cluster.Service({s.ns, s.flags.name}));
  const TimePoint now = Now();
  const std::vector<Start> starts = StartsOfPod(view, pod, now);
  if (!pod.empty() && starts.empty()) return NoInstance(view, pod);
  if (s.flags.output == "json") {
    Write(ToJson(view, starts));
  } else if (s.flags.output == "svg") {
    Write(TimelineSvg(view, starts));
  } else {
    Write(ShowTimeline(view, pod, now, s.screen));
  }
  return {};
}

Status RunExplain(Session& s) {
  ROUSE_ASSIGN_OR_RETURN(const ServiceView view, s.cluster.Service({s.ns, s.flags.name}));
  const std::string& pod = s.flags.pod;
  std::vector<Json> events;
  std::string unread;
  const auto add = [&](const std::string& kind, const std::string& name) {
    auto found = s.cluster.EventsAbout(s.ns, kind, name);
    if (!found.ok()) {
      unread = found.status().message();
      return;
    }
    std::move(found->begin(), found->end(), std::back_inserter(events));
  };
  if (pod.empty()) {
    add("ModelService", s.flags.name);
    add("Pod", "");
  } else {
    add("Pod", pod);
  }
  const std::string text = ExplainText(view, pod, EventsOf(view, events), Now(), s.screen);
  if (text.empty()) return NoInstance(view, pod);
  Write(text);
  // What was found is said all the same.
  if (!unread.empty()) std::cerr << "no events: " << Printable(unread) << "\n";
  return {};
}

Status RunPreview(Session& s) {
  ROUSE_ASSIGN_OR_RETURN(Cluster::Observation seen, s.cluster.Observe({s.ns, s.flags.name}));
  const Forecast forecast = MakeForecast(std::move(seen.observed), s.flags.replicas, Now());
  if (s.flags.output == "json") {
    Write(ToJson(forecast));
  } else {
    Write(ForecastText(forecast, s.screen));
  }
  if (!seen.incomplete.empty()) std::cerr << Printable(seen.incomplete) << "\n";
  return {};
}

Status RunDoctor(Session& s) {
  ROUSE_ASSIGN_OR_RETURN(const Evidence evidence,
                         s.cluster.Examine(s.ns, s.flags.operator_namespace));
  const std::vector<Finding> findings = Diagnose(evidence, kVersion, Now());
  if (s.flags.output == "json") {
    Write(ToJson(findings));
  } else {
    Write(DoctorText(findings, s.screen));
  }
  const int errors = ErrorsIn(findings);
  if (errors == 0) return {};
  return FailedPrecondition(Plural(errors, "finding") +
                            " to be mended (marked !, or Error in JSON)");
}

}  // namespace rouse::kubectl
