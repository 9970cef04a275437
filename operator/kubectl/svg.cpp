#include "operator/kubectl/svg.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "operator/kubectl/text.h"
#include "operator/kubectl/timeline.h"

namespace rouse::kubectl {
namespace {

// All lengths in pixels.
constexpr int kWidth = 1000;
constexpr int kMargin = 20;
constexpr int kBars = 300;  // Where the bars begin: left of them is who, by which path, how long.
constexpr int kHead = 76;
constexpr int kBar = 22;
constexpr int kLane = 8;
constexpr int kGap = 12;
constexpr int kLegendRow = 22;
constexpr int kLegendColumn = 160;
constexpr int kTicks = 5;
constexpr const char* kLaneFill = "#8a8a8a";
constexpr const char* kFailedFill = "#d75f5f";
constexpr std::size_t kMostText = 90;

std::string Number(double value) {
  char out[40];
  std::snprintf(out, sizeof out, "%.2f", value);
  return out;
}

std::string TextAt(double x, double y, const std::string& text, const std::string& more = "") {
  return "<text x=\"" + Number(x) + "\" y=\"" + Number(y) + "\"" + more + ">" + XmlEscaped(text) +
         "</text>\n";
}

std::string Rectangle(double x, double y, double width, double height, std::string_view fill,
                      const std::string& title, const std::string& more = "") {
  return "<rect x=\"" + Number(x) + "\" y=\"" + Number(y) + "\" width=\"" + Number(width) +
         "\" height=\"" + Number(height) + "\" fill=\"" + std::string(fill) + "\"" + more +
         "><title>" + XmlEscaped(title) + "</title></rect>\n";
}

struct Place {
  std::int64_t longest_us = 1;

  double At(std::int64_t us) const {
    return kBars +
           static_cast<double>(us) / static_cast<double>(longest_us) * (kWidth - kMargin - kBars);
  }
};

std::string Title(const Span& span) {
  return span.name + " " + Seconds(span.end_us - span.start_us) + " s";
}

int HeightOf(const Start& start) {
  return kBar + static_cast<int>(start.lanes.size()) * (kLane + 2) + kGap;
}

std::string Bar(const Start& start, const Place& place, int y) {
  const double width = std::max(place.At(start.total_us) - kBars, 1.0);
  if (start.end == Start::End::kNone) {
    return Rectangle(kBars, y, width, kBar, "none", start.doing,
                     std::string(" stroke=\"") + kLaneFill + "\" stroke-dasharray=\"4 3\"");
  }
  if (start.end == Start::End::kFailed) {
    return Rectangle(kBars, y, width, kBar, kFailedFill, start.doing, " fill-opacity=\"0.35\"");
  }
  if (start.phases.empty()) {
    return Rectangle(kBars, y, width, kBar, LookOf("").svg, Seconds(start.total_us) + " s");
  }
  std::string out;
  for (const Span& phase : start.phases) {
    const double from = place.At(phase.start_us), to = place.At(phase.end_us);
    const PhaseLook look = LookOf(phase.name);
    out += Rectangle(from, y, to - from, kBar, look.svg, Title(phase));
    if (to - from >= 14) {
      out += TextAt((from + to) / 2, y + kBar - 7, std::string(1, look.letter),
                    " text-anchor=\"middle\" font-size=\"11\"");
    }
  }
  return out;
}

std::string Row(const Start& start, const Place& place, int y) {
  std::string out = TextAt(kMargin, y + kBar - 6, Cut(Printable(start.pod), 20));
  out += TextAt(kMargin + 170, y + kBar - 6, Cut(Printable(start.path), 8));
  std::string seconds = Seconds(start.total_us) + (start.end == Start::End::kNone ? "…" : "");
  out += TextAt(kBars - 10, y + kBar - 6, seconds, " text-anchor=\"end\"");
  out += Bar(start, place, y);
  if (!start.doing.empty()) {
    out += TextAt(kBars + 6, y + kBar - 6, Cut(Printable(start.doing), kMostText),
                  " font-size=\"11\"");
  }
  int lane = y + kBar + 2;
  for (const Span& span : start.lanes) {
    const double from = std::min(place.At(span.start_us), double{kWidth - kMargin});
    const double to = std::min(place.At(span.end_us), double{kWidth - kMargin});
    out += Rectangle(from, lane, std::max(to - from, 1.0), kLane, kLaneFill, Title(span));
    out += TextAt(from - 4, lane + kLane, Cut(Printable(span.name), 20),
                  " text-anchor=\"end\" font-size=\"9\" fill=\"#555555\"");
    lane += kLane + 2;
  }
  return out;
}

std::string Axis(const Place& place, int bottom) {
  std::string out;
  for (int tick = 0; tick <= kTicks; ++tick) {
    const std::int64_t us = place.longest_us * tick / kTicks;
    const double x = place.At(us);
    out += "<line x1=\"" + Number(x) + "\" y1=\"" + std::to_string(kHead - 8) + "\" x2=\"" +
           Number(x) + "\" y2=\"" + std::to_string(bottom) + "\" stroke=\"#dddddd\"/>\n";
    out += TextAt(x, kHead - 12, Seconds(us) + " s",
                  tick == kTicks ? " text-anchor=\"end\" font-size=\"11\""
                                 : " text-anchor=\"middle\" font-size=\"11\"");
  }
  return out;
}

// The phases in use, in the order in which they first appear.
std::vector<std::string> Used(const std::vector<Start>& starts) {
  std::vector<std::string> names;
  for (const Start& start : starts) {
    for (const Span& phase : start.phases) {
      if (std::find(names.begin(), names.end(), phase.name) == names.end()) {
        names.push_back(phase.name);
      }
    }
  }
  return names;
}

std::string Legend(const std::vector<std::string>& names, int y) {
  constexpr int kColumns = (kWidth - 2 * kMargin) / kLegendColumn;
  std::string out;
  for (int i = 0; i < static_cast<int>(names.size()); ++i) {
    const PhaseLook look = LookOf(names[static_cast<std::size_t>(i)]);
    const int x = kMargin + i % kColumns * kLegendColumn;
    const int row = y + i / kColumns * kLegendRow;
    const std::string& name = names[static_cast<std::size_t>(i)];
    out += Rectangle(x, row, 14, 14, look.svg, name);
    out += TextAt(x + 20, row + 12, std::string(1, look.letter) + " " + Cut(Printable(name), 16));
  }
  return out;
}

}  // namespace

std::string TimelineSvg(const ServiceView& view, const std::vector<Start>& starts) {
  Place place;
  int bottom = kHead;
  for (const Start& start : starts) {
    place.longest_us = std::max(place.longest_us, start.total_us);
    bottom += HeightOf(start);
  }
  const std::vector<std::string> names = Used(starts);
  constexpr int kColumns = (kWidth - 2 * kMargin) / kLegendColumn;
  const int legend_rows = (static_cast<int>(names.size()) + kColumns - 1) / kColumns;
  const int height = bottom + legend_rows * kLegendRow + kMargin;
  std::string out = "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 " +
                    std::to_string(kWidth) + " " + std::to_string(height) + "\" width=\"" +
                    std::to_string(kWidth) + "\" height=\"" + std::to_string(height) +
                    "\" font-family=\"sans-serif\" font-size=\"13\">\n";
  out += "<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n";
  out += TextAt(kMargin, 30,
                view.Name() + ": " + Plural(static_cast<std::int64_t>(starts.size()), "start") +
                    ", from the decision to the first token",
                " font-size=\"16\"");
  if (!starts.empty()) out += Axis(place, bottom - kGap / 2);
  int y = kHead;
  for (const Start& start : starts) {
    out += Row(start, place, y);
    y += HeightOf(start);
  }
  return out + Legend(names, bottom) + "</svg>\n";
}

}  // namespace rouse::kubectl
