#include <catch2/catch.hpp>

#include "operator/kubectl/status.h"
#include "operator/tests/kubectl_world.h"

using namespace rouse;
using namespace rouse::kubectl;
using namespace rouse::kubectl::testing;

namespace {

std::string StatusOf(const Json& service, const std::vector<Json>& pods) {
  return "\n" + StatusText({View(service, pods)}, kNow, kPlain);
}

bool HasControls(const std::string& text) {
  return std::any_of(text.begin(), text.end(), [](char c) {
    const auto byte = static_cast<unsigned char>(c);
    return (byte < 0x20 && c != '\n') || byte == 0x7F;
  });
}

}  // namespace

TEST_CASE("what others have written cannot control a terminal", "[kubectl]") {
  CHECK(Printable("plain, größer, 模型") == "plain, größer, 模型");
  CHECK(Printable("\x1b[2J\x1b]0;title\x07") == "\\x1b[2J\\x1b]0;title\\x07");
  CHECK(Printable("a\nb\r\tc") == "a b  c");
  CHECK(Printable(std::string("nul\0", 4)) == "nul\\x00");
  CHECK(Printable("del\x7f") == "del\\x7f");
  CHECK(Printable("c1\xc2\x9b"
                  "31m") == "c1\\x9b31m");
  CHECK(Printable("turned\xe2\x80\xae") == "turned\\u202e");
  CHECK(Printable("hidden\xe2\x80\x8b") == "hidden\\u200b");
  CHECK(Printable("tag\xf3\xa0\x81\x81") == "tag\\ue0041");
  CHECK(Printable("broken\xff\xc3") == "broken\\xff\\xc3");
  CHECK(Printable("overlong\xc0\x9b") == "overlong\\xc0\\x9b");
  CHECK(Printable("surrogate\xed\xa0\x80") == "surrogate\\xed\\xa0\\x80");
  CHECK(XmlEscaped("<a href=\"x\">&'\x1b") == "&lt;a href=&quot;x&quot;&gt;&amp;&#39;\\x1b");
}

TEST_CASE("text is cut at characters, not at bytes", "[kubectl]") {
  CHECK(Cut("abc", 3) == "abc");
  CHECK(Cut("abcd", 3) == "ab…");
  CHECK(Cut("äöüß", 3) == "äö…");
  CHECK(Cut("ab", 0).empty());
  CHECK(Width("äöü") == 3);
}

TEST_CASE("a service that is as wanted: its instances, and nothing to worry about", "[kubectl]") {
  Json service = Content(2);
  service["spec"]["guards"] = {{"replicas", 1}};
  service["status"]["guards"] = 1;
  Json woken = WithTimeline(Pod("demo-10", "Serving", 30, "Wake", "this guard slept"),
                            Wake(kNowUs - 30 * kSecond));
  woken["status"]["conditions"] = Json::array({{{"type", "Ready"}, {"status", "True"}}});
  Json guard = Serving("demo-2", 4000);
  guard["metadata"]["labels"][api::kLabelRole] = "Guard";
  guard["metadata"]["annotations"][api::kAnnotationAgentState] = "Asleep";
  CHECK(StatusOf(service, {woken, Serving("demo-0", 7300), guard}) == R"(
default/demo: 2 of 2 instances serve; 1 of 1 guard sleeps
  POD      ROLE    STATE    PATH     FIRST TOKEN     AGE  NODE    NOTE
  demo-0   Active  Serving  Storage      20.00 s     2 h  node-a
  demo-2   Guard   Asleep   Storage      20.00 s  66 min  node-a
  demo-10  Active  Serving  Wake          3.00 s    30 s  node-a
)");
}

TEST_CASE("what is under way and what is not as it should be is said", "[kubectl]") {
  Json service = ServiceJson(3);
  service["status"] = {
      {"observedGeneration", 2}, {"readyReplicas", 1}, {"active", 2}, {"failed", 1}};
  service = WithCondition(service, "Available", true, "InstancesServe", "1 of 3 serve");
  service = WithCondition(service, "Progressing", true, "Scaling", "1 instance created");
  service = WithCondition(service, "Degraded", true, "InstancesFail", "demo-1 failed: no memory");
  service = WithCondition(service, "StateReuse", false, "SwitchedOff", "state.reuse is false");
  const Json failed =
      Annotated(Pod("demo-1", "Failed", 20), api::kAnnotationAgentMessage, "no memory\x1b[31m");
  const Json starting = Pod("demo-2", "Loading", 5, "Peer", "Wake: no guards");
  Json others = Pod("demo-3", "Serving", 5);
  others["metadata"]["ownerReferences"][0]["uid"] = "somebody";
  CHECK(StatusOf(service, {Serving("demo-0", 60), failed, starting, others}) == R"(
default/demo: 1 of 3 instances serve, 1 starting, 1 failed
  ~  Status       Behind         the operator has not seen the last change of the spec yet
  ~  Progressing  Scaling        1 instance created
  !  Degraded     InstancesFail  demo-1 failed: no memory
  !  Pod          NotOurs        demo-3 has its label rouse.dev/modelservice and belongs to somebody else
  POD     ROLE    STATE    PATH     FIRST TOKEN   AGE  NODE    NOTE
  demo-0  Active  Serving  Storage      20.00 s  60 s  node-a
  demo-1  Active  Failed   Storage            -  20 s  node-a  no memory\x1b[31m
  demo-2  Active  Loading  Peer         5.00 s…   5 s  node-a
)");
}

TEST_CASE("a service that no operator has seen, and one whose spec nobody can read, are shown",
          "[kubectl]") {
  Json unseen = ServiceJson(1);
  unseen.erase("status");
  CHECK(StatusOf(unseen, {}) == R"(
default/demo: 0 of 1 instance serves
  !  Status  NotObserved  the operator has not looked at it yet: `kubectl rouse doctor` tells whether one runs
)");
  Json unreadable = Content(1);
  unreadable["spec"]["engine"].erase("image");
  CHECK(StatusOf(unreadable, {}) == R"(
default/demo: 1 instance serves, the spec cannot be read
  !  Spec  InvalidSpec  spec.engine.image: missing, expected a string
)");
}

TEST_CASE("hostile objects reach neither the terminal nor JSON as they are", "[kubectl]") {
  Json service = WithCondition(Content(1), "Degraded", true, "\x1b[1mX", "clear\x1b[2J\x9b");
  const Json pod = Annotated(Pod("demo-0", "Loading", 5), api::kAnnotationAgentMessage,
                             "\x1b]0;title\x07\xe2\x80\xae");
  const ServiceView view = View(service, {pod});
  CHECK_FALSE(HasControls(StatusText({view}, kNow, kPlain)));
  const std::string json = StatusJson({view}).dump(2, ' ', true, Json::error_handler_t::replace);
  CHECK_FALSE(HasControls(json));
  CHECK(std::all_of(json.begin(), json.end(), [](char c) { return (c & 0x80) == 0; }));
}

TEST_CASE("the JSON of a status says what its text says", "[kubectl]") {
  Json service = WithCondition(ServiceJson(2), "Degraded", true, "InstancesFail", "demo-1 failed");
  const Json out = StatusJson({View(service, {Serving("demo-0", 60)})})["modelServices"][0];
  CHECK(out["name"] == "demo");
  CHECK(out["desired"] == 2);
  CHECK(out["concerns"][0]["reason"] == "InstancesFail");
  CHECK(out["instances"][0]["name"] == "demo-0");
  CHECK(out["instances"][0]["state"] == "Serving");
  CHECK(out["instances"][0]["lastTimeline"]["totalUs"] == 20 * kSecond);
}
