#include <catch2/catch.hpp>

#include "operator/kubectl/svg.h"
#include "operator/kubectl/timeline.h"
#include "operator/tests/kubectl_world.h"

using namespace rouse;
using namespace rouse::kubectl;
using namespace rouse::kubectl::testing;

namespace {

const Screen kNarrow{.columns = 66, .colour = false};

Json ScaleOut(const std::string& pod, const std::string& uid, const std::string& path,
              std::int64_t finished_age) {
  return {{"pod", pod},
          {"uid", uid},
          {"path", path},
          {"reason", "told by the status"},
          {"seconds", 10.0},
          {"phases", Json::array({{{"name", "Schedule"}, {"seconds", 4.0}},
                                  {{"name", "Weights"}, {"seconds", 6.0}}})},
          {"bytesBySource", {{"peer", 2'500'000'000}, {"storage", 0}}},
          {"finishedAt", api::FormatMicros(kNow - std::chrono::seconds(finished_age))}};
}

// demo-0 from storage, demo-1 woken, demo-2 on its way, demo-3 failed, and one that is gone.
ServiceView Busy() {
  Json service = Content(3);
  service["status"]["scaleOuts"] = Json::array({ScaleOut("demo-9", "uid-gone", "Peer", 900),
                                                ScaleOut("demo-0", "uid-demo-0", "Storage", 580)});
  const Json woken = WithTimeline(Pod("demo-1", "Serving", 30, "Wake", "this guard slept"),
                                  Wake(kNowUs - 30 * kSecond));
  const Json failed = Annotated(Pod("demo-3", "Failed", 10), api::kAnnotationAgentMessage, "why");
  return View(service,
              {Serving("demo-0", 600), woken, Pod("demo-2", "Loading", 12, "Peer"), failed});
}

}  // namespace

TEST_CASE("each start is a bar of letters, to one scale", "[kubectl]") {
  const ServiceView view = Busy();
  CHECK("\n" + TimelineText(view, StartsOf(view, kNow), kNarrow) == R"(
default/demo: 5 starts, from the decision to the first token
POD     PATH     SECONDS  0                                20.00 s
demo-9  Peer       10.00  SSSSSSSSWWWWWWWWWWWW (gone)
demo-0  Storage    20.00  SSHHEEEEEEEEEEEEEEEEDDDDWWWWWWWWWWGGGGTT
demo-1  Wake        3.00  CMMWRK
demo-2  Peer      12.00…  ........................ Loading
demo-3  Storage    10.00  xxxxxxxxxxxxxxxxxxxx Failed: why
S Schedule  H Hydrate  E EngineStart  D DeviceInit  W Weights  G Capture  T FirstToken  C Command  M Map  R Resume  K Canary  . under way  x failed
)");
}

TEST_CASE("colours add to the letters and take none away", "[kubectl]") {
  const ServiceView view = Busy();
  const auto starts = StartsOf(view, kNow);
  std::string coloured = TimelineText(view, starts, {.columns = 66, .colour = true});
  CHECK(coloured.find("\x1b[30;48;5;167mWWWW") != std::string::npos);
  std::string plain;
  for (std::size_t at = 0; at < coloured.size();) {
    if (coloured[at] == '\x1b') {
      at = coloured.find('m', at) + 1;
    } else {
      plain += coloured[at++];
    }
  }
  CHECK(plain == TimelineText(view, starts, kNarrow));
}

TEST_CASE("one pod's start is shown phase by phase, with what ran beside it", "[kubectl]") {
  Timeline timeline = StorageStart(kNowUs - 600 * kSecond);
  timeline.lanes = {{"Read", 10 * kSecond, 15 * kSecond}};
  const ServiceView view = View(Content(1), {WithTimeline(Serving("demo-0", 600), timeline)});
  const Screen screen{.columns = 65, .colour = false};
  CHECK("\n" + TimelineDetail(view, StartsOf(view, kNow), screen) == R"(
default/demo-0: Storage, 20.00 s to the first token
  decided 2027-01-15T07:50:00Z: Wake: no guards; Peer: no other instance runs
  S Schedule     1.00 s  SS
  H Hydrate      1.00 s    HH
  E EngineStart  8.00 s      EEEEEEEEEEEEEEEE
  D DeviceInit   2.00 s                      DDDD
  W Weights      5.00 s                          WWWWWWWWWW
  G Capture      2.00 s                                    GGGG
  T FirstToken   1.00 s                                        TT
  = Read         5.00 s                      ==========
)");
}

TEST_CASE("a start that both pod and status tell of is one", "[kubectl]") {
  const ServiceView view = Busy();
  const auto starts = StartsOf(view, kNow);
  const auto of = [&](const std::string& pod) {
    return std::count_if(starts.begin(), starts.end(),
                         [&](const Start& start) { return start.pod == pod; });
  };
  CHECK(of("demo-0") == 1);
  CHECK(of("demo-9") == 1);
  CHECK(starts[1].bytes_by_source.at("peer") == 2'500'000'000);
  CHECK(starts[1].reason == "told by the status");
}

TEST_CASE("a guard that wakes shows its wake, not the start before it", "[kubectl]") {
  // Decided 10 s ago; its annotation still tells of the wake before.
  Json pod =
      WithTimeline(Pod("demo-0", "Waking", 10, "Wake", "slept"), Wake(kNowUs - 300 * kSecond));
  auto starts = StartsOf(View(Content(1), {pod}), kNow);
  REQUIRE(starts.size() == 2);
  CHECK(starts[0].end == Start::End::kFirstToken);
  CHECK(starts[1].end == Start::End::kNone);
  CHECK(starts[1].total_us == 10 * kSecond);
  CHECK(starts[1].doing == "Waking");

  pod = WithTimeline(Pod("demo-0", "Serving", 10, "Wake", "slept"), Wake(kNowUs - 10 * kSecond));
  starts = StartsOf(View(Content(1), {pod}), kNow);
  REQUIRE(starts.size() == 1);
  CHECK(starts[0].end == Start::End::kFirstToken);
}

TEST_CASE("phases of other versions, and of no length, are drawn all the same", "[kubectl]") {
  const Timeline odd = MakeTimeline(StartPath::kPeer, kNowUs - kSecond,
                                    {{"Schedule", 0}, {"N\x1bw", 1}, {"FirstToken", 0}});
  const ServiceView view = View(Content(1), {WithTimeline(Pod("demo-0", "Serving", 1), odd)});
  const std::string text = TimelineText(view, StartsOf(view, kNow), kNarrow);
  CHECK(text.find("1.00  " + std::string(43, '?') + "\n") != std::string::npos);
  CHECK(text.find("? other") != std::string::npos);
  const std::string detail = TimelineDetail(view, StartsOf(view, kNow), kNarrow);
  CHECK(detail.find("? N\\x1bw") != std::string::npos);
  CHECK(detail.find('\x1b') == std::string::npos);

  const Timeline none = MakeTimeline(StartPath::kPeer, kNowUs, {});
  const ServiceView empty = View(Content(1), {WithTimeline(Pod("demo-0", "Serving", 0), none)});
  CHECK(TimelineText(empty, StartsOf(empty, kNow), kNarrow).find("0.00  ?\n") != std::string::npos);
}

TEST_CASE("a timeline's SVG has each phase in its place, and names as text only", "[kubectl]") {
  Timeline timeline = StorageStart(kNowUs - 600 * kSecond);
  timeline.lanes = {{"<Read>", 10 * kSecond, 15 * kSecond}};
  timeline.phases[4].name = "We\"ig</title><script>\x1b";
  const ServiceView view = View(Content(1), {WithTimeline(Serving("demo-0", 600), timeline)});
  const std::string svg = TimelineSvg(view, StartsOf(view, kNow));
  // 680 pixels are 20 s, from 300 on: EngineStart is from 2 s to 10 s.
  CHECK(svg.find(R"(<rect x="368.00" y="76.00" width="272.00" height="22.00" fill="#5f87af">)"
                 "<title>EngineStart 8.00 s</title></rect>") != std::string::npos);
  CHECK(svg.find("<title>We&quot;ig&lt;/title&gt;&lt;script&gt;\\x1b 5.00 s</title>") !=
        std::string::npos);
  CHECK(svg.find("&lt;Read&gt; 5.00 s") != std::string::npos);
  CHECK(svg.find("<script") == std::string::npos);
  CHECK(svg.find('\x1b') == std::string::npos);
  CHECK(svg.ends_with("</svg>\n"));
}

TEST_CASE("an SVG of starts without a first token, and of none, can be drawn", "[kubectl]") {
  const ServiceView view = Busy();
  const std::string svg = TimelineSvg(view, StartsOf(view, kNow));
  CHECK(svg.find("<title>Loading</title>") != std::string::npos);
  CHECK(svg.find("<title>Failed: why</title>") != std::string::npos);
  CHECK(TimelineSvg(view, {}).find("0 starts") != std::string::npos);
}

TEST_CASE("a timeline's JSON has every span in microseconds", "[kubectl]") {
  const ServiceView view = Busy();
  const Json out = ToJson(view, StartsOf(view, kNow));
  CHECK(out["modelService"]["name"] == "demo");
  REQUIRE(out["starts"].size() == 5);
  CHECK(out["starts"][0]["podExists"] == false);
  CHECK(out["starts"][1]["phases"][2] ==
        Json({{"name", "EngineStart"}, {"startUs", 2 * kSecond}, {"endUs", 10 * kSecond}}));
  CHECK(out["starts"][3]["end"] == "UnderWay");
  CHECK(out["starts"][4]["end"] == "Failed");
  CHECK(out["starts"][4]["doing"] == "Failed: why");
}
