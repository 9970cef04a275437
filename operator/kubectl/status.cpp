#include "operator/kubectl/status.h"

#include "operator/kubectl/starts.h"

namespace rouse::kubectl {
namespace {

Colour ColourOf(const std::string& state) {
  if (state == "Serving" || state == "Asleep") return Colour::kGood;
  if (state == "Failed" || state == "CrashLoop" || state == "Unschedulable" ||
      state == "NodeLost") {
    return Colour::kBad;
  }
  return Colour::kWarning;
}

std::string Headline(const ServiceView& view, const Screen& screen) {
  const api::ServiceStatus& status = view.service.status;
  const std::string name = Paint(screen, Colour::kBold, Printable(view.Name()));
  if (view.service.metadata.deleting) return name + ": is being deleted";
  if (!view.unreadable.ok()) {
    return name + ": " + Plural(status.ready, "instance") +
           (status.ready == 1 ? " serves" : " serve") + ", the spec cannot be read";
  }
  std::string text = name + ": " + ServeText(status.ready, view.service.spec.replicas);
  const int starting = status.active - status.ready - status.waking;
  if (status.waking > 0) text += ", " + std::to_string(status.waking) + " waking";
  if (starting > 0) text += ", " + std::to_string(starting) + " starting";
  if (status.failed > 0) text += ", " + std::to_string(status.failed) + " failed";
  if (const int guards = view.service.spec.guard_replicas; guards > 0 || status.guards > 0) {
    text += "; " + std::to_string(status.guards) + " of " + Plural(guards, "guard") +
            (guards == 1 ? " sleeps" : " sleep");
  }
  return text;
}

// Of one under way: how long it has taken so far.
std::string FirstToken(const Start* last) {
  if (last == nullptr || last->end == Start::End::kFailed) return "-";
  return Seconds(last->total_us) + (last->end == Start::End::kNone ? " s…" : " s");
}

std::string Instances(const ServiceView& view, TimePoint now, const Screen& screen) {
  if (view.instances.empty()) return "";
  const std::vector<Start> starts = StartsOf(view, now);
  Table table;
  const Colour head = Colour::kFaint;
  table.Add({{"POD", head},
             {"ROLE", head},
             {"STATE", head},
             {"PATH", head},
             {"FIRST TOKEN", head, true},
             {"AGE", head, true},
             {"NODE", head},
             {"NOTE", head}});
  for (const plan::Instance& instance : view.instances) {
    const std::string state = StateOf(instance);
    const Start* last = LastStart(starts, instance.uid);
    table.Add({{instance.name},
               {std::string(ToString(instance.role))},
               {state, ColourOf(state)},
               {last == nullptr ? std::string(ToString(instance.path)) : last->path},
               {FirstToken(last), Colour::kNone, true},
               {Age(now - instance.decided_at), Colour::kNone, true},
               {instance.node.empty() ? "-" : instance.node},
               {NoteOf(instance)}});
  }
  return table.ToString(screen, "  ");
}

std::string Concerns(const ServiceView& view, const Screen& screen) {
  Table table;
  for (const Concern& concern : ConcernsOf(view)) {
    table.Add({{concern.failure ? "!" : "~", concern.failure ? Colour::kBad : Colour::kWarning},
               {concern.type},
               {concern.reason},
               {concern.message}});
  }
  for (const std::string& pod : view.others) {
    table.Add({{"!", Colour::kBad},
               {"Pod"},
               {"NotOurs"},
               {pod + " has its label rouse.dev/modelservice and belongs to somebody else"}});
  }
  return table.ToString(screen, "  ");
}

Json InstanceJson(const plan::Instance& instance) {
  Json out = {{"name", instance.name},
              {"uid", instance.uid},
              {"role", ToString(instance.role)},
              {"state", StateOf(instance)},
              {"ready", instance.ready},
              {"path", ToString(instance.path)},
              {"pathReason", instance.path_reason},
              {"decidedAt", api::FormatMicros(instance.decided_at)},
              {"node", instance.node},
              {"note", NoteOf(instance)},
              {"bytesBySource", ToJson(instance.bytes)}};
  if (instance.timeline) {
    out["lastTimeline"] = ToJson(*instance.timeline);
  }
  return out;
}

}  // namespace

std::string StatusText(const std::vector<ServiceView>& views, TimePoint now, const Screen& screen) {
  std::string out;
  for (const ServiceView& view : views) {
    if (!out.empty()) out += "\n";
    out += Headline(view, screen) + "\n" + Concerns(view, screen) + Instances(view, now, screen);
  }
  return out;
}

Json StatusJson(const std::vector<ServiceView>& views) {
  Json list = Json::array();
  for (const ServiceView& view : views) {
    Json concerns = Json::array();
    for (const Concern& concern : ConcernsOf(view)) {
      concerns.push_back({{"failure", concern.failure},
                          {"type", concern.type},
                          {"reason", concern.reason},
                          {"message", concern.message}});
    }
    Json instances = Json::array();
    for (const plan::Instance& instance : view.instances) {
      instances.push_back(InstanceJson(instance));
    }
    const api::ServiceStatus& status = view.service.status;
    list.push_back({{"namespace", view.service.metadata.ns},
                    {"name", view.service.metadata.name},
                    {"desired", view.service.spec.replicas},
                    {"ready", status.ready},
                    {"active", status.active},
                    {"waking", status.waking},
                    {"failed", status.failed},
                    {"guards", status.guards},
                    {"desiredGuards", view.service.spec.guard_replicas},
                    {"concerns", concerns},
                    {"instances", instances}});
  }
  return {{"modelServices", list}};
}

}  // namespace rouse::kubectl
