#include "operator/kubectl/starts.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "operator/kubectl/text.h"

namespace rouse::kubectl {
namespace {

constexpr std::string_view kWake = "Wake";
// A status that was written from another reading of the same annotation.
constexpr std::chrono::seconds kSameWake{1};
// Durations beyond this are nobody's: nothing below overflows.
constexpr double kLongestSeconds = 1e9;

// Of a claimed guard: the pod's timeline is of an earlier wake, or of its start.
bool IsWakingUp(const plan::Instance& instance) {
  if (instance.role != Role::kActive || instance.path != StartPath::kWake) return false;
  return !instance.timeline || instance.timeline->path != StartPath::kWake ||
         instance.timeline->decided_at_us < api::ToMicros(instance.decided_at);
}

Start Finished(const plan::Instance& instance) {
  const Timeline& timeline = *instance.timeline;
  Start start{.pod = instance.name,
              .uid = instance.uid,
              .path = std::string(ToString(timeline.path)),
              .reason = "",
              .decided_at = api::FromMicros(timeline.decided_at_us),
              .end = Start::End::kFirstToken,
              .total_us = timeline.total_us,
              .doing = "",
              .phases = timeline.phases,
              .lanes = timeline.lanes,
              .bytes_by_source = {},
              .gone = false};
  if (timeline.path == instance.path) start.reason = instance.path_reason;
  if (timeline.path != StartPath::kWake) {
    start.bytes_by_source = {{"peer", static_cast<std::int64_t>(instance.bytes.peer)},
                             {"storage", static_cast<std::int64_t>(instance.bytes.storage)}};
  }
  return start;
}

Start Unfinished(const plan::Instance& instance, TimePoint now) {
  const bool failed = HasFailed(instance);
  std::string doing = StateOf(instance);
  if (const std::string note = NoteOf(instance); !note.empty()) doing += ": " + note;
  return {.pod = instance.name,
          .uid = instance.uid,
          .path = std::string(ToString(instance.path)),
          .reason = instance.path_reason,
          .decided_at = instance.decided_at,
          .end = failed ? Start::End::kFailed : Start::End::kNone,
          .total_us = std::max<std::int64_t>((now - instance.decided_at).count(), 0),
          .doing = std::move(doing),
          .phases = {},
          .lanes = {},
          .bytes_by_source = {},
          .gone = false};
}

std::int64_t Micros(double seconds) {
  if (!(seconds > 0)) return 0;
  return std::llround(std::min(seconds, kLongestSeconds) * 1e6);
}

Start FromStatus(const api::ScaleOut& scale_out, bool gone) {
  Start start{.pod = scale_out.pod,
              .uid = scale_out.uid,
              .path = scale_out.path,
              .reason = scale_out.reason,
              .decided_at = {},
              .end = Start::End::kFirstToken,
              .total_us = 0,
              .doing = "",
              .phases = {},
              .lanes = {},
              .bytes_by_source = scale_out.bytes_by_source,
              .gone = gone};
  // The phases partition the whole; the status has rounded each by itself.
  for (const api::PhaseSeconds& phase : scale_out.phases) {
    const std::int64_t end = start.total_us + Micros(phase.seconds);
    start.phases.push_back({phase.name, start.total_us, end});
    start.total_us = end;
  }
  if (scale_out.phases.empty()) start.total_us = Micros(scale_out.seconds);
  start.decided_at = scale_out.finished_at - std::chrono::microseconds(start.total_us);
  return start;
}

// An instance starts once, and wakes again and again.
bool IsSame(const Start& start, const api::ScaleOut& scale_out) {
  if (start.end != Start::End::kFirstToken || start.uid != scale_out.uid) return false;
  if (start.path != scale_out.path) return false;
  if (start.path != kWake) return true;
  const TimePoint finished = start.decided_at + std::chrono::microseconds(start.total_us);
  return finished - scale_out.finished_at < kSameWake &&
         scale_out.finished_at - finished < kSameWake;
}

Json ToJson(const std::vector<Span>& spans) {
  Json out = Json::array();
  for (const Span& span : spans) {
    out.push_back({{"name", span.name}, {"startUs", span.start_us}, {"endUs", span.end_us}});
  }
  return out;
}

std::string_view ToString(Start::End end) {
  switch (end) {
    case Start::End::kFirstToken:
      return "FirstToken";
    case Start::End::kNone:
      return "UnderWay";
    case Start::End::kFailed:
      return "Failed";
  }
  return "";
}

}  // namespace

std::vector<Start> StartsOf(const ServiceView& view, TimePoint now) {
  std::vector<Start> starts;
  for (const plan::Instance& instance : view.instances) {
    if (instance.timeline) starts.push_back(Finished(instance));
    if (instance.deleting) continue;
    if (!instance.timeline || IsWakingUp(instance)) starts.push_back(Unfinished(instance, now));
  }
  for (const api::ScaleOut& scale_out : view.service.status.scale_outs) {
    const auto same = std::find_if(starts.begin(), starts.end(),
                                   [&](const Start& start) { return IsSame(start, scale_out); });
    if (same != starts.end()) {
      same->bytes_by_source = scale_out.bytes_by_source;
      same->reason = scale_out.reason;
      continue;
    }
    const bool gone = std::none_of(view.instances.begin(), view.instances.end(),
                                   [&](const auto& i) { return i.uid == scale_out.uid; });
    starts.push_back(FromStatus(scale_out, gone));
  }
  std::sort(starts.begin(), starts.end(), [](const Start& a, const Start& b) {
    return std::tie(a.decided_at, a.pod, a.uid) < std::tie(b.decided_at, b.pod, b.uid);
  });
  return starts;
}

const Start* LastStart(const std::vector<Start>& starts, const std::string& uid) {
  const auto last = std::find_if(starts.rbegin(), starts.rend(),
                                 [&](const Start& start) { return start.uid == uid; });
  return last == starts.rend() ? nullptr : &*last;
}

std::string SourcesOf(const Start& start) {
  std::string text;
  for (const auto& [source, bytes] : start.bytes_by_source) {
    if (bytes <= 0) continue;
    text += (text.empty() ? "" : ", ") + Bytes(bytes) + " from " +
            (source == "peer" ? "peers" : source);
  }
  return text;
}

Json ToJson(const ServiceView& view, const std::vector<Start>& starts) {
  Json list = Json::array();
  for (const Start& start : starts) {
    Json one = {{"pod", start.pod},
                {"uid", start.uid},
                {"path", start.path},
                {"reason", start.reason},
                {"decidedAt", api::FormatMicros(start.decided_at)},
                {"end", ToString(start.end)},
                {"totalUs", start.total_us},
                {"phases", ToJson(start.phases)},
                {"lanes", ToJson(start.lanes)},
                {"bytesBySource", start.bytes_by_source},
                {"podExists", !start.gone}};
    if (!start.doing.empty()) one["doing"] = start.doing;
    list.push_back(std::move(one));
  }
  return {{"modelService",
           {{"namespace", view.service.metadata.ns}, {"name", view.service.metadata.name}}},
          {"starts", list}};
}

}  // namespace rouse::kubectl
