#include "operator/kubectl/timeline.h"

#include <algorithm>
#include <cmath>

namespace rouse::kubectl {
namespace {

constexpr PhaseLook kLooks[] = {
    {"Schedule", 'S', 248, "#a8a8a8", "the agent runs"},
    {"Hydrate", 'H', 107, "#87af5f", "caches are in place, the engine may start"},
    {"EngineStart", 'E', 67, "#5f87af", "the engine's process has imported vLLM"},
    {"Spawn", 'P', 110, "#8787d7", "the last worker's process has begun"},
    {"DeviceInit", 'D', 74, "#5fafd7", "the worker has its device, loading begins"},
    {"ModelBuild", 'B', 109, "#87afaf", "the model is built, without its weights"},
    {"Weights", 'W', 167, "#d75f5f", "weights are in place, as the engine computes with them"},
    {"Profile", 'O', 215, "#ffaf5f", "the model is compiled, and its memory measured"},
    {"KvCache", 'V', 180, "#d7af87", "the KV cache is allocated"},
    {"Capture", 'G', 172, "#d78700", "CUDA graphs are captured"},
    {"ApiStart", 'A', 144, "#afaf87", "the engine is healthy"},
    {"FirstToken", 'T', 140, "#af87d7", "the first token"},
    {"Command", 'C', 114, "#87d787", "every rank has asked for its memory"},
    {"Map", 'M', 66, "#5f8787", "the memory is mapped"},
    {"Resume", 'R', 182, "#d7afd7", "the engine goes on"},
    {"Canary", 'K', 136, "#af8700", "the canary's first token"}};
constexpr char kLaneLetter = '=';
constexpr char kUnderWay = '.';
constexpr char kFailed = 'x';
constexpr int kLaneAnsi = 245;
constexpr std::size_t kLeastBar = 20;

std::string Filled(const Screen& screen, int ansi, char letter, std::size_t count) {
  const std::string cells(count, letter);
  if (!screen.colour || count == 0) return cells;
  return "\x1b[30;48;5;" + std::to_string(ansi) + "m" + cells + "\x1b[0m";
}

// A scale from 0 to `longest` on `cells` characters.
struct Scale {
  std::int64_t longest_us = 1;
  std::size_t cells = kLeastBar;

  std::size_t At(std::int64_t us) const {
    const double share = static_cast<double>(us) / static_cast<double>(longest_us);
    return static_cast<std::size_t>(
        std::lround(std::clamp(share, 0.0, 1.0) * static_cast<double>(cells)));
  }
};

std::int64_t Longest(const std::vector<Start>& starts) {
  std::int64_t longest = 1;
  for (const Start& start : starts) longest = std::max(longest, start.total_us);
  return longest;
}

// The phases side by side. Each ends where it would on the scale, so that what is shorter than a
// character is as a rule not seen, and the whole has the right length.
std::string Bar(const Start& start, const Scale& scale, const Screen& screen) {
  const std::size_t whole = std::max<std::size_t>(scale.At(start.total_us), 1);
  if (start.end == Start::End::kNone) return Filled(screen, kLaneAnsi, kUnderWay, whole);
  if (start.end == Start::End::kFailed) return Filled(screen, 167, kFailed, whole);
  if (start.phases.empty()) return Filled(screen, kLaneAnsi, LookOf("").letter, whole);
  std::string bar;
  std::size_t at = 0;
  for (const Span& phase : start.phases) {
    const bool last = &phase == &start.phases.back();
    const std::size_t end = std::max(at, last ? whole : std::min(scale.At(phase.end_us), whole));
    const PhaseLook look = LookOf(phase.name);
    bar += Filled(screen, look.ansi, look.letter, end - at);
    at = end;
  }
  return bar;
}

std::string Axis(const Scale& scale, const Screen& screen) {
  const std::string end = Seconds(scale.longest_us) + " s";
  std::string text = "0";
  if (scale.cells > Width(end) + 1) {
    text += std::string(scale.cells - 1 - Width(end), ' ') + end;
  }
  return Paint(screen, Colour::kFaint, text);
}

// What the letters in use mean.
std::string Legend(const std::vector<Start>& starts, const Screen& screen) {
  std::vector<std::string> entries;
  bool other = false, under_way = false, failed = false;
  const auto used = [&](std::string_view name) {
    return std::any_of(starts.begin(), starts.end(), [&](const Start& start) {
      return std::any_of(start.phases.begin(), start.phases.end(),
                         [&](const Span& phase) { return phase.name == name; });
    });
  };
  for (const PhaseLook& look : kLooks) {
    if (!used(look.name)) continue;
    entries.push_back(Filled(screen, look.ansi, look.letter, 1) + " " + std::string(look.name));
  }
  for (const Start& start : starts) {
    under_way = under_way || start.end == Start::End::kNone;
    failed = failed || start.end == Start::End::kFailed;
    for (const Span& phase : start.phases) other = other || LookOf(phase.name).letter == '?';
    other = other || (start.end == Start::End::kFirstToken && start.phases.empty());
  }
  if (other) entries.push_back(Filled(screen, LookOf("").ansi, '?', 1) + " other");
  if (under_way) entries.push_back(Filled(screen, kLaneAnsi, kUnderWay, 1) + " under way");
  if (failed) entries.push_back(Filled(screen, 167, kFailed, 1) + " failed");
  std::string out;
  for (const std::string& entry : entries) out += (out.empty() ? "" : "  ") + entry;
  return out.empty() ? "" : out + "\n";
}

std::string SecondsOf(const Start& start) {
  return Seconds(start.total_us) + (start.end == Start::End::kNone ? "…" : "");
}

std::string Padded(const std::string& text, std::size_t width, bool right = false) {
  const std::size_t has = Width(text);
  const std::string pad(width > has ? width - has : 0, ' ');
  return right ? pad + text : text + pad;
}

std::size_t BarWidth(const Screen& screen, std::size_t taken) {
  const auto columns = static_cast<std::size_t>(std::max(screen.columns, 0));
  return columns > taken + kLeastBar ? columns - taken : kLeastBar;
}

// A pod's phases one below the other: a letter, a name, seconds, and where each lies on the scale.
std::string Lines(const Start& start, const Screen& screen) {
  std::size_t names = 0, seconds = 0;
  for (const auto* spans : {&start.phases, &start.lanes}) {
    for (const Span& span : *spans) {
      names = std::max(names, Width(Printable(span.name)));
      seconds = std::max(seconds, Width(Seconds(span.end_us - span.start_us)));
    }
  }
  const std::size_t taken = 2 + 2 + names + 2 + seconds + 2 + 2;
  const Scale scale{std::max<std::int64_t>(start.total_us, 1), BarWidth(screen, taken)};
  std::string out;
  const auto add = [&](const Span& span, char letter, int ansi) {
    const std::size_t from = std::min(scale.At(span.start_us), scale.cells - 1);
    const std::size_t to = std::max(scale.At(span.end_us), from + 1);
    out += "  " + Filled(screen, ansi, letter, 1) + " " + Padded(Printable(span.name), names) +
           "  " + Padded(Seconds(span.end_us - span.start_us), seconds, true) + " s  " +
           std::string(from, ' ') + Filled(screen, ansi, letter, to - from) + "\n";
  };
  for (const Span& phase : start.phases) {
    const PhaseLook look = LookOf(phase.name);
    add(phase, look.letter, look.ansi);
  }
  for (const Span& lane : start.lanes) add(lane, kLaneLetter, kLaneAnsi);
  return out;
}

std::string Sources(const Start& start) {
  const std::string text = Printable(SourcesOf(start));
  return text.empty() ? "" : "  weights: " + text + "\n";
}

std::string Ending(const Start& start) {
  switch (start.end) {
    case Start::End::kFirstToken:
      return Seconds(start.total_us) + " s to the first token";
    case Start::End::kNone:
      return Seconds(start.total_us) + " s so far; " + Printable(start.doing);
    case Start::End::kFailed:
      return Printable(start.doing);
  }
  return "";
}

}  // namespace

PhaseLook LookOf(std::string_view phase) {
  for (const PhaseLook& look : kLooks) {
    if (look.name == phase) return look;
  }
  return {};
}

std::string TimelineText(const ServiceView& view, const std::vector<Start>& starts,
                         const Screen& screen) {
  const std::string name = Paint(screen, Colour::kBold, Printable(view.Name()));
  if (starts.empty()) return name + ": no start is known yet\n";
  std::size_t pods = 3, paths = 4, seconds = 7;
  for (const Start& start : starts) {
    pods = std::max(pods, Width(Printable(start.pod)));
    paths = std::max(paths, Width(Printable(start.path)));
    seconds = std::max(seconds, Width(SecondsOf(start)));
  }
  const std::size_t taken = pods + 2 + paths + 2 + seconds + 2;
  const Scale scale{Longest(starts), BarWidth(screen, taken)};
  std::string out = name + ": " + Plural(static_cast<std::int64_t>(starts.size()), "start") +
                    ", from the decision to the first token\n";
  out += Paint(screen, Colour::kFaint,
               Padded("POD", pods) + "  " + Padded("PATH", paths) + "  " +
                   Padded("SECONDS", seconds, true)) +
         "  " + Axis(scale, screen) + "\n";
  for (const Start& start : starts) {
    std::string line = Padded(Printable(start.pod), pods) + "  " +
                       Padded(Printable(start.path), paths) + "  " +
                       Padded(SecondsOf(start), seconds, true) + "  ";
    line += Bar(start, scale, screen);
    if (!start.doing.empty()) line += " " + Cut(Printable(start.doing), 60);
    if (start.gone) line += " (gone)";
    out += line + "\n";
  }
  return out + Legend(starts, screen);
}

std::string TimelineDetail(const ServiceView& view, const std::vector<Start>& starts,
                           const Screen& screen) {
  std::string out;
  for (const Start& start : starts) {
    if (!out.empty()) out += "\n";
    out += Paint(screen, Colour::kBold,
                 Printable(view.service.metadata.ns) + "/" + Printable(start.pod)) +
           ": " + Printable(start.path) + ", " + Ending(start) + "\n";
    out += "  decided " + api::FormatSeconds(start.decided_at);
    if (!start.reason.empty()) out += ": " + Printable(start.reason);
    out += "\n" + Sources(start) + Lines(start, screen);
  }
  return out;
}

}  // namespace rouse::kubectl
