#include "operator/plan/marks.h"

namespace rouse::plan {
namespace {

constexpr std::size_t kMaxText = 8 << 10;
constexpr std::size_t kMaxReason = 1024;

api::TimePoint ReadAt(json::Reader& in) {
  return api::FromMicros(in.Int("atUs", 0, kLastMicros));
}

}  // namespace

std::string_view ToString(Cause cause) {
  return json::NameOf<Cause>(cause, kCauses);
}

json::Json ToJson(const Leaving& leaving) {
  return {{"atUs", api::ToMicros(leaving.at)},
          {"cause", ToString(leaving.cause)},
          {"reason", leaving.reason.substr(0, kMaxReason)}};
}

json::Json ToJson(const FailedWakes& wakes) {
  return {{"atUs", api::ToMicros(wakes.at)},
          {"count", wakes.count},
          {"reason", wakes.reason.substr(0, kMaxReason)}};
}

std::optional<Leaving> LeavingFromText(const std::string& text) {
  if (text.empty()) return std::nullopt;
  const auto parsed = json::Parse(text, "leaving", kMaxText);
  if (!parsed.ok()) return std::nullopt;
  json::Reader in(*parsed, "");
  Leaving out{.at = ReadAt(in),
              .cause = in.Enum<Cause>("cause", kCauses),
              .reason = in.StringOr("reason", "")};
  return in.status().ok() ? std::optional(std::move(out)) : std::nullopt;
}

std::optional<FailedWakes> FailedWakesFromText(const std::string& text) {
  if (text.empty()) return std::nullopt;
  const auto parsed = json::Parse(text, "failed wakes", kMaxText);
  if (!parsed.ok()) return std::nullopt;
  json::Reader in(*parsed, "");
  FailedWakes out{.count = static_cast<int>(in.Int("count", 0, 1'000'000)),
                  .at = ReadAt(in),
                  .reason = in.StringOr("reason", "")};
  return in.status().ok() ? std::optional(std::move(out)) : std::nullopt;
}

}  // namespace rouse::plan
