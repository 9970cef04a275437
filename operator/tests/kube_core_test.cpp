#include <catch2/catch.hpp>

#include "operator/kube/api_error.h"
#include "operator/kube/events.h"
#include "operator/kube/resource.h"
#include "operator/kube/store.h"

namespace rouse::kube {
namespace {

using namespace std::chrono_literals;

TEST_CASE("paths name group, namespace, object and subresource, each encoded") {
  CHECK(Pods().Path("default", "demo-0") == "/api/v1/namespaces/default/pods/demo-0");
  CHECK(Pods().Path("") == "/api/v1/pods");
  CHECK(Nodes().Path("ignored", "n1") == "/api/v1/nodes/n1");
  CHECK(ModelServices().Path("a", "b", "status") ==
        "/apis/rouse.dev/v1alpha1/namespaces/a/modelservices/b/status");
  CHECK(Pods().Path("a/../b", "x?y#z%") == "/api/v1/namespaces/a%2F..%2Fb/pods/x%3Fy%23z%25");
}

TEST_CASE("metadata is read from anything without a crash") {
  for (const Json& odd :
       {Json(), Json(5), Json::array(), Json{{"metadata", 3}},
        Json{{"metadata", {{"name", 7}, {"labels", 4}, {"ownerReferences", 1}}}}}) {
    CHECK(NameOf(odd) == ObjectName{});
    CHECK(Label(odd, "x").empty());
    CHECK(Annotation(odd, "x").empty());
    CHECK(ControllerUid(odd).empty());
  }
  const Json owner = {{"metadata", {{"name", "m"}, {"uid", "u1"}}}};
  const Json pod = {
      {"metadata",
       {{"name", "p"},
        {"labels", {{"a", "b"}}},
        {"ownerReferences", {{{"uid", "u0"}}, ControllerReference(owner, ModelServices())}}}}};
  CHECK(ControllerUid(pod) == "u1");
  CHECK(Label(pod, "a") == "b");
}

TEST_CASE("keys and names convert both ways") {
  CHECK(ObjectName{"ns", "n"}.Key() == "ns/n");
  CHECK(ObjectName::FromKey("ns/n") == ObjectName{"ns", "n"});
  CHECK(ObjectName::FromKey("n") == ObjectName{"", "n"});
}

TEST_CASE("refusals become the codes that say what to do") {
  const auto code = [](int http, const std::string& reason = "") {
    return DecodeError(http, Json{{"kind", "Status"}, {"reason", reason}}.dump(), "")
        .ToStatus("get pod a/b")
        .code();
  };
  CHECK(code(400) == StatusCode::kInvalidArgument);
  CHECK(code(401) == StatusCode::kFailedPrecondition);
  CHECK(code(403) == StatusCode::kFailedPrecondition);
  CHECK(code(404) == StatusCode::kNotFound);
  CHECK(code(409, "AlreadyExists") == StatusCode::kAlreadyExists);
  CHECK(code(409, "Conflict") == StatusCode::kConflict);
  CHECK(code(410) == StatusCode::kConflict);
  CHECK(code(422) == StatusCode::kInvalidArgument);
  CHECK(code(429) == StatusCode::kUnavailable);
  CHECK(code(500) == StatusCode::kUnavailable);
  CHECK(code(503) == StatusCode::kUnavailable);
  CHECK(code(504) == StatusCode::kDeadlineExceeded);
  CHECK(DecodeError(410, "", "").IsGone());
}

// What the API server says, word for word.
Status Forbidden(const std::string& words) {
  const Json body = {{"kind", "Status"}, {"message", words}, {"reason", "Forbidden"}};
  return DecodeError(403, body.dump(), "").ToStatus("create pod default/demo-0");
}

TEST_CASE("a refusal names the call, the server's words and the remedy") {
  const std::string words =
      R"(pods is forbidden: User "system:serviceaccount:s:a" cannot create resource "pods" in API group "" in the namespace "default")";
  const Status status = Forbidden(words);
  CHECK(status.message().find("create pod default/demo-0: " + words + " (HTTP status 403)") == 0);
  CHECK(status.message().find("grant it with a Role") != std::string::npos);
  CHECK(DecodeError(401, "", "").ToStatus("x").message().find("token") != std::string::npos);
}

TEST_CASE("403 for another reason than missing rights does not send anybody to the roles") {
  const auto [words, remedy] = GENERATE(table<std::string, std::string>(
      {{R"(pods "demo-0" is forbidden: exceeded quota: few, requested: pods=1, used: pods=2, limited: pods=2)",
        "raise the quota"},
       {R"(pods "demo-0" is forbidden: failed quota: few: must specify limits.cpu for: engine)",
        "set the requests and limits"},
       {R"(pods "demo-0" is forbidden: violates PodSecurity "restricted:latest": hostPort (container "engine" uses hostPort 80))",
        "pod-security.kubernetes.io/enforce"},
       {R"(pods "demo-0" is forbidden: unable to create new content in namespace x because it is being terminated)",
        ""},
       {R"(admission webhook "a.b" denied the request: no)", ""}}));
  INFO(words);
  const Status status = Forbidden(words);
  CHECK(status.code() == StatusCode::kFailedPrecondition);
  CHECK(status.message().find("Role") == std::string::npos);
  if (remedy.empty()) {
    CHECK(status.message().ends_with("(HTTP status 403)"));
  } else {
    CHECK(status.message().find(remedy) != std::string::npos);
  }
}

TEST_CASE("a body that is no Status is kept short and printable") {
  const ApiError error =
      DecodeError(502, "<html>\n\x01" + std::string(100'000, 'x') + "</html>", "");
  CHECK(error.message.size() < 400);
  CHECK(error.message.find('\n') == std::string::npos);
  CHECK(DecodeError(500, std::string(1'000'000, '['), "").http_status == 500);
}

TEST_CASE("Retry-After is taken from the header, else from the details, and is bounded") {
  CHECK(DecodeError(429, "", "7").retry_after == 7s);
  CHECK(DecodeError(429, "", " 7 ").retry_after == 7s);
  CHECK(
      DecodeError(429, R"({"kind":"Status","details":{"retryAfterSeconds":3}})", "").retry_after ==
      3s);
  CHECK(
      DecodeError(429, R"({"kind":"Status","details":{"retryAfterSeconds":3}})", "9").retry_after ==
      9s);
  CHECK(DecodeError(429, "", "Wed, 21 Oct 2026 07:28:00 GMT").retry_after == std::nullopt);
  CHECK(DecodeError(429, "", "-5").retry_after == std::nullopt);
  CHECK(DecodeError(429, "", "99999999999999999999999").retry_after == 1h);
  CHECK(DecodeError(429, "", "").IsRetryable());
  CHECK_FALSE(DecodeError(500, "", "").IsRetryable());
  CHECK(DecodeError(503, "", "1").IsRetryable());
}

struct Thing {
  std::string name;
  std::string color;
};

Json ThingObject(const std::string& name, const std::string& color) {
  return {{"metadata", {{"namespace", "n"}, {"name", name}, {"labels", {{"color", color}}}}}};
}

TEST_CASE("a store projects, indexes and tells of changes") {
  std::vector<std::string> changes;
  Store<Thing> store(
      [](const Json& object) -> Store<Thing>::Value {
        if (Label(object, "color") == "invisible") return nullptr;
        return std::make_shared<Thing>(Thing{NameOf(object).name, Label(object, "color")});
      },
      [](const Thing& thing) { return std::vector{thing.color}; },
      [&changes](const std::string& key, const auto& before, const auto& after) {
        changes.push_back(key + ":" + (before ? before->color : "-") + ">" +
                          (after ? after->color : "-"));
      });
  using K = StoreEvent::Kind;
  CHECK_FALSE(store.synced());
  store.Take({K::kInitBegin, nullptr});
  store.Take({K::kInitApply, ThingObject("a", "red")});
  store.Take({K::kInitApply, ThingObject("b", "red")});
  CHECK(store.size() == 0);
  CHECK_FALSE(store.synced());
  store.Take({K::kInitDone, nullptr});
  CHECK(store.synced());
  CHECK(store.ByIndex("red").size() == 2);
  CHECK(changes.size() == 2);

  changes.clear();
  store.Take({K::kApply, ThingObject("a", "blue")});
  store.Take({K::kDelete, ThingObject("b", "red")});
  store.Take({K::kDelete, ThingObject("b", "red")});
  CHECK(changes == std::vector<std::string>{"n/a:red>blue", "n/b:red>-"});
  CHECK(store.ByIndex("red").empty());
  CHECK(store.ByIndex("blue").size() == 1);

  changes.clear();
  store.Take({K::kApply, ThingObject("a", "invisible")});
  CHECK(changes == std::vector<std::string>{"n/a:blue>-"});
  CHECK(store.Get("n/a") == nullptr);

  // A relist that is begun twice, and drops what it does not have.
  store.Take({K::kApply, ThingObject("old", "red")});
  changes.clear();
  store.Take({K::kInitBegin, nullptr});
  store.Take({K::kInitApply, ThingObject("half", "red")});
  store.Take({K::kInitBegin, nullptr});
  store.Take({K::kInitApply, ThingObject("new", "green")});
  CHECK(store.Get("n/old") != nullptr);
  store.Take({K::kInitDone, nullptr});
  CHECK(store.All().size() == 1);
  CHECK(store.Get("n/half") == nullptr);
  CHECK(store.ByIndex("red").empty());
  CHECK(changes == std::vector<std::string>{"n/new:->green", "n/old:red>-"});
}

TEST_CASE("keeping an object whole leaves out managedFields and the last applied text") {
  const auto kept =
      KeepWhole({{"metadata",
                  {{"name", "a"},
                   {"managedFields", {1, 2}},
                   {"annotations",
                    {{"kubectl.kubernetes.io/last-applied-configuration", "{}"}, {"x", "y"}}}}},
                 {"spec", 1}});
  CHECK(*kept == Json{{"metadata", {{"name", "a"}, {"annotations", {{"x", "y"}}}}}, {"spec", 1}});
  CHECK(*KeepWhole(5) == 5);
}

const WallTime kNow = WallTime() + std::chrono::microseconds(1'767'323'045'000'006);

Event Started(const std::string& note = "took weights from demo-0") {
  return {.regarding = ReferenceTo(Pods(), {"default", "demo-1"}, "u1"),
          .reason = "PeerStart",
          .action = "CreatePod",
          .note = note};
}

TEST_CASE("times are written as the API's MicroTime") {
  CHECK(MicroTime(kNow) == "2026-01-02T03:04:05.000006Z");
  CHECK(MicroTime(WallTime()) == "1970-01-01T00:00:00.000000Z");
}

TEST_CASE("the first event goes out whole") {
  EventAggregator aggregator({.instance = "op-1"});
  const auto writes = aggregator.Add(Started(), kNow, 0xabc);
  REQUIRE(writes.size() == 1);
  CHECK(writes[0].create);
  CHECK(writes[0].name == ObjectName{"default", "demo-1.0000000000000abc"});
  const Json& body = writes[0].body;
  CHECK(body["apiVersion"] == "events.k8s.io/v1");
  CHECK(body["eventTime"] == "2026-01-02T03:04:05.000006Z");
  CHECK(body["reportingController"] == "rouse.dev/operator");
  CHECK(body["reportingInstance"] == "op-1");
  CHECK(body["regarding"]["uid"] == "u1");
  CHECK(body["type"] == "Normal");
  CHECK_FALSE(body.contains("series"));
}

TEST_CASE("repetitions raise one series, written at most once in a while") {
  EventAggregator aggregator({.series_every = 10s});
  aggregator.Add(Started(), kNow, 1);
  for (int i = 1; i <= 5; ++i) {
    CHECK(aggregator.Add(Started(), kNow + std::chrono::seconds(i), 2).empty());
  }
  CHECK(aggregator.NextDue() == kNow + 10s);
  CHECK(aggregator.Due(kNow + 9s).empty());
  auto writes = aggregator.Due(kNow + 10s);
  REQUIRE(writes.size() == 1);
  CHECK_FALSE(writes[0].create);
  CHECK(writes[0].name.name == "demo-1.0000000000000001");
  CHECK(writes[0].body["series"]["count"] == 6);
  CHECK(writes[0].body["series"]["lastObservedTime"] == MicroTime(kNow + 5s));
  CHECK(aggregator.NextDue() == std::nullopt);

  writes = aggregator.Add(Started(), kNow + 21s, 3);
  REQUIRE(writes.size() == 1);
  CHECK(writes[0].body["series"]["count"] == 7);
  aggregator.Add(Started(), kNow + 22s, 3);
  CHECK(aggregator.Due(kNow + 22s, true).size() == 1);
}

TEST_CASE("a clock that is set back holds no count back for longer than usual") {
  EventAggregator aggregator({.window = 60s, .series_every = 10s});
  aggregator.Add(Started(), kNow, 1);
  aggregator.Add(Started(), kNow + 1s, 2);
  const WallTime back = kNow - 48h;
  CHECK(aggregator.Due(back).empty());
  CHECK(aggregator.NextDue() == back + 10s);
  const auto writes = aggregator.Due(back + 10s);
  REQUIRE(writes.size() == 1);
  CHECK(writes[0].body["series"]["count"] == 2);
  CHECK(aggregator.Add(Started(), back + 80s, 3).at(0).create);  // Long after, by both clocks.
}

TEST_CASE("another note, type, reason or object is another event; so is a repetition after long") {
  EventAggregator aggregator({.window = 60s});
  CHECK(aggregator.Add(Started(), kNow, 1)[0].create);
  CHECK(aggregator.Add(Started("else"), kNow, 2)[0].create);
  Event warning = Started();
  warning.type = EventType::kWarning;
  CHECK(aggregator.Add(warning, kNow, 3)[0].body["type"] == "Warning");
  Event other = Started();
  other.regarding["uid"] = "u2";
  CHECK(aggregator.Add(other, kNow, 4)[0].create);
  aggregator.Add(Started(), kNow + 1s, 5);
  const auto writes = aggregator.Add(Started(), kNow + 2min, 6);
  REQUIRE(writes.size() == 2);  // The old series is closed, a new event begun.
  CHECK_FALSE(writes[0].create);
  CHECK(writes[1].create);
}

TEST_CASE("a lost event is begun anew at its next repetition") {
  EventAggregator aggregator({});
  const auto writes = aggregator.Add(Started(), kNow, 1);
  aggregator.Lost(writes[0].key);
  CHECK(aggregator.Add(Started(), kNow + 1s, 2)[0].create);
}

TEST_CASE("memory of events is bounded, and what it forgets is written first") {
  EventAggregator aggregator({.remembered = 2});
  aggregator.Add(Started("a"), kNow, 1);
  aggregator.Add(Started("a"), kNow, 1);
  aggregator.Add(Started("b"), kNow, 2);
  const auto writes = aggregator.Add(Started("c"), kNow, 3);
  REQUIRE(writes.size() == 2);
  CHECK(writes[0].create);
  CHECK(writes[1].body["series"]["count"] == 2);
}

TEST_CASE("long texts are cut where the API would refuse them, between characters") {
  EventAggregator aggregator({});
  std::string note;
  for (int i = 0; i < 600; ++i) note += "é";
  Event event = Started("x" + note);
  event.regarding["name"] = std::string(253, 'n');
  event.reason = std::string(500, 'R');
  const auto writes = aggregator.Add(event, kNow, 1);
  const auto cut = writes[0].body["note"].get<std::string>();
  CHECK(cut.size() == 1023);
  CHECK(cut.ends_with("é"));
  CHECK(writes[0].body["reason"].get<std::string>().size() == 128);
  CHECK(writes[0].name.name.size() == 253);
}

TEST_CASE("an event about a cluster-scoped object lives in namespace default") {
  EventAggregator aggregator({});
  Event event = Started();
  event.regarding = ReferenceTo(Nodes(), {"", "node-1"}, "u");
  CHECK(aggregator.Add(event, kNow, 1)[0].name.ns == "default");
}

}  // namespace
}  // namespace rouse::kube
