#include "common/timeline.h"

namespace rouse {
namespace {

// What a ModelService's status may have.
constexpr std::size_t kMaxPhases = 32;
constexpr std::size_t kMaxLanes = 64;
constexpr std::size_t kMaxSpanName = 64;

json::Json SpansToJson(const std::vector<Span>& spans) {
  json::Json out = json::Json::array();
  for (const Span& span : spans) {
    out.push_back({{"name", span.name}, {"startUs", span.start_us}, {"endUs", span.end_us}});
  }
  return out;
}

std::vector<Span> ReadSpans(json::Reader& in, std::string_view key, std::size_t max) {
  return in.ObjectsOrEmpty(key, max, [](json::Reader& entry) {
    Span span{.name = entry.String("name"),
              .start_us = entry.Int("startUs"),
              .end_us = entry.Int("endUs")};
    if (span.name.size() > kMaxSpanName) entry.Fail("name", "is over 64 bytes");
    if (span.end_us < span.start_us) entry.Fail("endUs", "is before startUs");
    return span;
  });
}

}  // namespace

std::string_view ToString(StartPath path) {
  return json::NameOf<StartPath>(path, kStartPaths);
}

json::Json ToJson(const Timeline& timeline) {
  return {{"path", ToString(timeline.path)},
          {"decidedAtUs", timeline.decided_at_us},
          {"phases", SpansToJson(timeline.phases)},
          {"lanes", SpansToJson(timeline.lanes)},
          {"totalUs", timeline.total_us}};
}

Result<Timeline> TimelineFromJson(const json::Json& value, const std::string& path) {
  json::Reader in(value, path);
  Timeline timeline;
  timeline.path = in.Enum<StartPath>("path", kStartPaths);
  timeline.decided_at_us = in.Int("decidedAtUs");
  timeline.total_us = in.Int("totalUs");
  timeline.phases = ReadSpans(in, "phases", kMaxPhases);
  timeline.lanes = ReadSpans(in, "lanes", kMaxLanes);
  std::int64_t at = 0;
  for (const Span& phase : timeline.phases) {
    if (phase.start_us != at) {
      in.Fail("phases", "\"" + phase.name + "\" starts at " + std::to_string(phase.start_us) +
                            " us, expected " + std::to_string(at));
    }
    at = phase.end_us;
  }
  if (at != timeline.total_us) {
    in.Fail("totalUs", std::to_string(timeline.total_us) + " differs from the end of the phases, " +
                           std::to_string(at));
  }
  ROUSE_RETURN_IF_ERROR(in.status());
  return timeline;
}

}  // namespace rouse
