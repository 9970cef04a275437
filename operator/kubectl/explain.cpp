#include "operator/kubectl/explain.h"

#include <algorithm>
#include <set>

#include "operator/api/names.h"
#include "operator/kubectl/starts.h"
#include "operator/plan/objects.h"

namespace rouse::kubectl {
namespace {

using plan::At;
using plan::Text;

constexpr std::size_t kMostEvents = 20;

// Newer events have a series or an eventTime, older ones deprecatedLastTimestamp alone.
TimePoint LastSeen(const Json& event) {
  for (const std::string& text :
       {Text(At(event, "series"), "lastObservedTime"), Text(event, "deprecatedLastTimestamp"),
        Text(event, "eventTime"), Text(At(event, "metadata"), "creationTimestamp")}) {
    if (const auto time = api::ParseTime(text)) return *time;
  }
  return {};
}

std::int64_t CountOf(const Json& event) {
  for (const Json* count : {&At(At(event, "series"), "count"), &At(event, "deprecatedCount")}) {
    if (count->is_number_integer()) return std::max<std::int64_t>(count->get<std::int64_t>(), 1);
  }
  return 1;
}

std::string MeaningOf(const std::string& path) {
  if (path == "Wake") return "a guard that slept was woken";
  if (path == "Peer") return "weights come from instances that have them";
  return "weights are loaded from storage";
}

std::string Took(const Start& start) {
  if (start.end == Start::End::kFirstToken)
    return Seconds(start.total_us) + " s to the first token";
  if (start.end == Start::End::kNone) return Seconds(start.total_us) + " s so far";
  return "it failed";
}

std::string WeightsOf(const Start& start, const plan::Instance& instance) {
  const std::string text = SourcesOf(start);
  const std::string transport = Reported(instance, api::kAnnotationTransport);
  return text.empty() || transport.empty() ? text : text + " by " + transport;
}

void AddStart(const Start& start, const plan::Instance& instance, TimePoint now, Table& table) {
  const PathReason reason = ReadPathReason(start.reason);
  table.Add({{"path"},
             {start.path + ": " + (reason.taken.empty() ? MeaningOf(start.path) : reason.taken)}});
  for (const auto& [path, why] : reason.not_taken) table.Add({{"not " + path}, {why}});
  table.Add({{"decided"},
             {api::FormatSeconds(start.decided_at) + ", " + Age(now - start.decided_at) + " ago; " +
              Took(start)}});
  if (const std::string weights = WeightsOf(start, instance); !weights.empty()) {
    table.Add({{"weights"}, {weights}});
  }
}

std::string Explain(const plan::Instance& instance, const std::vector<Start>& starts, TimePoint now,
                    const Screen& screen) {
  const std::string state = StateOf(instance);
  std::string out = Paint(screen, Colour::kBold, Printable(instance.name)) + ": " +
                    std::string(ToString(instance.role)) + ", " + state +
                    (instance.node.empty() ? "" : " on " + Printable(instance.node)) + "\n";
  Table table;
  if (const Start* last = LastStart(starts, instance.uid)) AddStart(*last, instance, now, table);
  if (const std::string origin = Reported(instance, api::kAnnotationStateOrigin); !origin.empty()) {
    table.Add({{"caches"}, {origin}});
  }
  if (const std::string note = NoteOf(instance); !note.empty()) {
    table.Add({{"note"}, {note, Colour::kWarning}});
  }
  return out + table.ToString(screen, "  ");
}

std::string Conditions(const ServiceView& view, TimePoint now, const Screen& screen) {
  Table table;
  for (const api::Condition& c : view.service.status.conditions) {
    table.Add({{c.type},
               {c.status},
               {c.reason},
               {Age(now - c.last_transition), Colour::kNone, true},
               {c.message}});
  }
  const std::string text = table.ToString(screen, "  ");
  return text.empty() ? "" : "\nconditions\n" + text;
}

std::string Events(const std::vector<EventView>& events, TimePoint now, const Screen& screen) {
  if (events.empty()) return "";
  Table table;
  const std::size_t from = events.size() > kMostEvents ? events.size() - kMostEvents : 0;
  for (std::size_t i = from; i < events.size(); ++i) {
    const EventView& event = events[i];
    table.Add(
        {{Age(now - event.last), Colour::kNone, true},
         {event.count > 1 ? "x" + std::to_string(event.count) : ""},
         {event.warning ? "Warning" : "Normal", event.warning ? Colour::kWarning : Colour::kNone},
         {event.about},
         {event.reason},
         {event.note}});
  }
  return "\nevents\n" + table.ToString(screen, "  ");
}

}  // namespace

std::vector<EventView> EventsOf(const ServiceView& view, const std::vector<Json>& events) {
  std::set<std::string> uids = {view.service.metadata.uid};
  for (const plan::Instance& instance : view.instances) uids.insert(instance.uid);
  std::vector<EventView> out;
  for (const Json& event : events) {
    const Json& about = At(event, "regarding");
    const std::string uid = Text(about, "uid");
    if (!uids.contains(uid)) continue;
    out.push_back({.last = LastSeen(event),
                   .count = CountOf(event),
                   .warning = Text(event, "type") == "Warning",
                   .about = Text(about, "kind") + " " + Text(about, "name"),
                   .uid = uid,
                   .reason = Text(event, "reason"),
                   .note = Text(event, "note")});
  }
  std::stable_sort(out.begin(), out.end(),
                   [](const EventView& a, const EventView& b) { return a.last < b.last; });
  return out;
}

PathReason ReadPathReason(const std::string& reason) {
  constexpr std::string_view kNotWake = "Wake: ";
  constexpr std::string_view kNotPeer = "; Peer: ";
  if (!reason.starts_with(kNotWake)) return {.not_taken = {}, .taken = reason};
  // The last one: what was said of guards is others' text.
  const auto peer = reason.rfind(kNotPeer);
  PathReason out;
  out.not_taken.push_back(
      {"Wake", reason.substr(kNotWake.size(), peer == std::string::npos ? std::string::npos
                                                                        : peer - kNotWake.size())});
  if (peer != std::string::npos) {
    out.not_taken.push_back({"Peer", reason.substr(peer + kNotPeer.size())});
  }
  return out;
}

std::string ExplainText(const ServiceView& view, const std::string& pod,
                        const std::vector<EventView>& events, TimePoint now, const Screen& screen) {
  const std::vector<Start> starts = StartsOf(view, now);
  std::string out;
  std::vector<EventView> told = events;
  for (const plan::Instance& instance : view.instances) {
    if (!pod.empty() && instance.name != pod) continue;
    if (!out.empty()) out += "\n";
    out += Explain(instance, starts, now, screen);
    if (!pod.empty()) {
      std::erase_if(told, [&](const EventView& event) { return event.uid != instance.uid; });
    }
  }
  if (!pod.empty()) return out.empty() ? "" : out + Events(told, now, screen);
  if (out.empty()) out = Printable(view.Name()) + " has no instances\n";
  return out + Conditions(view, now, screen) + Events(told, now, screen);
}

}  // namespace rouse::kubectl
