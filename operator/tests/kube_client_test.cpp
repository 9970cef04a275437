#include "operator/kube/client.h"

#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>
#include <thread>

#include "operator/tests/fake_http_server.h"

namespace rouse::kube {
namespace {

using namespace std::chrono_literals;
using Catch::Contains;

const ObjectName kName{"default", "demo-0"};

// Answers in turn, and keeps what it was asked.
struct Script {
  using Step = std::function<void(FakeConnection&, const FakeRequest&)>;

  explicit Script(std::vector<Step> todo) : steps(std::move(todo)) {}

  std::unique_ptr<Client> Connect(ClientOptions options = {}, Config config = {}) {
    config.server = server.url();
    auto client = Client::Create(config, options);
    REQUIRE(client.ok());
    return *std::move(client);
  }

  std::mutex mutex;
  std::vector<Step> steps;
  std::vector<FakeRequest> requests;
  FakeHttpServer server{[this](FakeConnection& connection, const FakeRequest& request) {
    Step step;
    {
      std::lock_guard lock(mutex);
      requests.push_back(request);
      const std::size_t index = std::min(requests.size(), steps.size()) - 1;
      step = steps.at(index);
    }
    step(connection, request);
  }};
};

Script::Step Ok(Json body = Json{{"kind", "Pod"}}) {
  return [body](FakeConnection& c, const FakeRequest&) { c.Answer(200, body); };
}
Script::Step No(int status, std::string reason, std::string headers = "") {
  return [=](FakeConnection& c, const FakeRequest&) {
    c.Refuse(status, reason, "the server says no", headers);
  };
}

TEST_CASE("each call sends what the API expects") {
  Script script({Ok()});
  auto client = script.Connect({.user_agent = "rouse-operator/test"}, {.token = "abc"});
  const Json pod = {{"metadata", {{"namespace", "default"}, {"name", "demo-0"}}},
                    {"spec", {{"a", 1}}}};

  CHECK(client->Get(Pods(), kName).ok());
  CHECK(client->Create(Pods(), pod).ok());
  CHECK(client->Update(Pods(), pod).ok());
  CHECK(client->Apply(Pods(), pod, {.field_manager = "rouse op"}).ok());
  CHECK(client
            ->MergePatch(ModelServices(), kName, {{"status", {{"x", nullptr}}}},
                         {.field_manager = "rouse", .subresource = "status"})
            .ok());
  CHECK(client
            ->Delete(Pods(), kName,
                     {.uid = "u1",
                      .resource_version = "7",
                      .propagation = Propagation::kForeground,
                      .grace = 5s})
            .ok());

  const auto& asked = script.requests;
  REQUIRE(asked.size() == 6);
  CHECK(asked[0].method == "GET");
  CHECK(asked[0].target == "/api/v1/namespaces/default/pods/demo-0");
  CHECK(asked[0].headers.at("authorization") == "Bearer abc");
  CHECK(asked[0].headers.at("user-agent") == "rouse-operator/test");
  CHECK(asked[1].method == "POST");
  CHECK(asked[1].target == "/api/v1/namespaces/default/pods");
  CHECK(Json::parse(asked[1].body)["kind"] == "Pod");
  CHECK(Json::parse(asked[1].body)["apiVersion"] == "v1");
  CHECK(asked[2].method == "PUT");
  CHECK(asked[3].method == "PATCH");
  CHECK(asked[3].headers.at("content-type") == "application/apply-patch+yaml");
  CHECK(asked[3].query("fieldManager") == "rouse%20op");
  CHECK(asked[3].query("force") == "true");
  CHECK(asked[4].path() ==
        "/apis/rouse.dev/v1alpha1/namespaces/default/modelservices/demo-0/status");
  CHECK(asked[4].headers.at("content-type") == "application/merge-patch+json");
  CHECK(Json::parse(asked[4].body) == Json{{"status", {{"x", nullptr}}}});
  CHECK(asked[5].method == "DELETE");
  CHECK(Json::parse(asked[5].body) ==
        Json{{"apiVersion", "v1"},
             {"kind", "DeleteOptions"},
             {"propagationPolicy", "Foreground"},
             {"gracePeriodSeconds", 5},
             {"preconditions", {{"uid", "u1"}, {"resourceVersion", "7"}}}});
}

TEST_CASE("a call without a name is refused here: it would mean all objects") {
  Script script({Ok()});
  auto client = script.Connect();
  for (const ObjectName& name :
       {ObjectName{"default", ""}, ObjectName{"", "x"}, ObjectName{"default", ".."}}) {
    CHECK(client->Delete(Pods(), name, {}).code() == StatusCode::kInvalidArgument);
    CHECK_FALSE(client->Get(Pods(), name).ok());
  }
  CHECK_FALSE(client->Create(Pods(), Json{{"metadata", {{"namespace", "a"}}}}).ok());
  CHECK_FALSE(client->Apply(Pods(), Json(5), {.field_manager = "x"}).ok());
  CHECK_FALSE(
      client->Apply(Pods(), Json{{"metadata", {{"namespace", "a"}, {"name", "b"}}}}, {}).ok());
  CHECK(script.requests.empty());
}

TEST_CASE("refusals carry the code, the object and the server's words") {
  Script script({No(409, "Conflict"), No(409, "AlreadyExists"), No(404, "NotFound"),
                 No(422, "Invalid"), No(403, "Forbidden")});
  auto client = script.Connect();
  const Json pod = {{"metadata", {{"namespace", "default"}, {"name", "demo-0"}}}};
  const Status conflict = client->Apply(Pods(), pod, {.field_manager = "rouse"}).status();
  CHECK(conflict.code() == StatusCode::kConflict);
  CHECK_THAT(conflict.message(), Contains("apply pod default/demo-0: the server says no"));
  CHECK(client->Create(Pods(), pod).status().code() == StatusCode::kAlreadyExists);
  CHECK(client->Delete(Pods(), kName, {}).code() == StatusCode::kNotFound);
  CHECK(client->Create(Pods(), pod).status().code() == StatusCode::kInvalidArgument);
  CHECK(client->Get(Pods(), kName).status().code() == StatusCode::kFailedPrecondition);
  CHECK(client->counters().errors == 5);
}

TEST_CASE("429 with Retry-After is repeated after that time") {
  Script script({No(429, "TooManyRequests", "Retry-After: 1\r\n"), Ok()});
  auto client = script.Connect();
  const auto began = std::chrono::steady_clock::now();
  CHECK(client->Get(Pods(), kName).ok());
  CHECK(std::chrono::steady_clock::now() - began >= 1s);
  CHECK(client->counters().throttled == 1);
}

TEST_CASE("a wait that is too long, or a server that never has time, goes back to the caller") {
  Script script({No(429, "TooManyRequests", "Retry-After: 60\r\n")});
  const Status status = script.Connect()->Get(Pods(), kName).status();
  CHECK(status.code() == StatusCode::kUnavailable);
  CHECK_THAT(status.message(), Contains("try again in 60 s"));
  CHECK(script.requests.size() == 1);

  Script busy({No(503, "ServiceUnavailable", "Retry-After: 0\r\n")});
  CHECK(busy.Connect({.retries = 3})->Get(Pods(), kName).status().code() ==
        StatusCode::kUnavailable);
  CHECK(busy.requests.size() == 4);
}

TEST_CASE("a 5xx without Retry-After is not repeated") {
  Script script({No(500, "InternalError")});
  CHECK(script.Connect()->Get(Pods(), kName).status().code() == StatusCode::kUnavailable);
  CHECK(script.requests.size() == 1);
}

TEST_CASE("StopWaiting ends a wait for Retry-After") {
  Script script({No(429, "TooManyRequests", "Retry-After: 4\r\n")});
  auto client = script.Connect();
  std::thread stopper([&client] {
    std::this_thread::sleep_for(50ms);
    client->StopWaiting();
  });
  const auto began = std::chrono::steady_clock::now();
  CHECK_FALSE(client->Get(Pods(), kName).ok());
  CHECK(std::chrono::steady_clock::now() - began < 3s);
  stopper.join();
}

TEST_CASE("a rotated token is used at the next call, and at once after a 401") {
  const auto file =
      std::filesystem::temp_directory_path() / ("rouse-token-" + std::to_string(getpid()));
  std::ofstream(file) << "one";
  Script script({Ok(), Ok(),
                 [&file](FakeConnection& c, const FakeRequest&) {
                   std::ofstream(file) << "three";  // Rotated while the call was on its way.
                   c.Refuse(401, "Unauthorized", "expired");
                 },
                 Ok(), No(401, "Unauthorized")});
  auto client = script.Connect({}, {.token_file = file.string()});
  CHECK(client->Get(Pods(), kName).ok());
  std::ofstream(file) << "second";
  CHECK(client->Get(Pods(), kName).ok());
  CHECK(client->Get(Pods(), kName).ok());
  REQUIRE(script.requests.size() == 4);
  CHECK(script.requests[0].headers.at("authorization") == "Bearer one");
  CHECK(script.requests[1].headers.at("authorization") == "Bearer second");
  CHECK(script.requests[2].headers.at("authorization") == "Bearer second");
  CHECK(script.requests[3].headers.at("authorization") == "Bearer three");
  const Status status = client->Get(Pods(), kName).status();
  CHECK(status.code() == StatusCode::kFailedPrecondition);
  CHECK(script.requests.size() == 5);
  std::filesystem::remove(file);
}

TEST_CASE("a connection dropped while idle is replaced unnoticed, for a POST too") {
  Script script({[](FakeConnection& c, const FakeRequest&) {
                   c.Answer(200, Json{{"kind", "Pod"}});
                   c.Drop();  // Says keep-alive and closes all the same.
                 },
                 Ok()});
  auto client = script.Connect();
  CHECK(client->Get(Pods(), kName).ok());
  std::this_thread::sleep_for(50ms);
  const Json pod = {{"metadata", {{"namespace", "default"}, {"name", "demo-0"}}}};
  CHECK(client->Create(Pods(), pod).ok());
}

TEST_CASE("no server is Unavailable and says where it was looked for") {
  Script script({Ok()});
  auto client = script.Connect();
  script.server.Stop();
  const Status status = client->Get(Pods(), kName).status();
  CHECK(status.code() == StatusCode::kUnavailable);
  CHECK_THAT(
      status.message(),
      Contains("get pod default/demo-0: no answer from the API server at " + script.server.url()));
}

TEST_CASE("a server that is silent is given up after the timeout") {
  Script script({[](FakeConnection& c, const FakeRequest&) { c.HoldOpen(5s); }});
  auto client = script.Connect({.timeout = 300ms});
  const auto began = std::chrono::steady_clock::now();
  CHECK(client->Get(Pods(), kName).status().code() == StatusCode::kDeadlineExceeded);
  CHECK(std::chrono::steady_clock::now() - began < 3s);
}

TEST_CASE("an answer that is no JSON object is DataLoss and asks whether this is an API server") {
  Script script(
      {[](FakeConnection& c, const FakeRequest&) { c.Answer(200, std::string("<html>")); },
       [](FakeConnection& c, const FakeRequest&) { c.Answer(200, std::string("[1]")); }});
  auto client = script.Connect();
  for (int i = 0; i < 2; ++i) {
    const Status status = client->Get(Pods(), kName).status();
    CHECK(status.code() == StatusCode::kDataLoss);
    CHECK_THAT(status.message(), Contains("an API server?"));
  }
}

Json PodPage(int first, int count, const std::string& next) {
  Json items = Json::array();
  for (int i = first; i < first + count; ++i) {
    items.push_back({{"metadata",
                      {{"namespace", "default"},
                       {"name", "pod-" + std::to_string(i)},
                       {"resourceVersion", "5"}}}});
  }
  Json metadata = {{"resourceVersion", "9"}};
  if (!next.empty()) metadata["continue"] = next;
  return {{"kind", "PodList"}, {"metadata", metadata}, {"items", items}};
}

TEST_CASE("a list of 1,200 objects comes whole, in pages") {
  Script script({[](FakeConnection& c, const FakeRequest& request) {
    const std::string token = request.query("continue");
    const int first = token.empty() ? 0 : std::stoi(token);
    const int limit = std::stoi(request.query("limit"));
    const int count = std::min(limit, 1200 - first);
    c.Answer(200, PodPage(first, count, first + count < 1200 ? std::to_string(first + count) : ""));
  }});
  const auto list =
      script.Connect()->List(Pods(), "default", {.label_selector = "a=b,c", .page_size = 500});
  REQUIRE(list.ok());
  CHECK(list->items.size() == 1200);
  CHECK(list->items.back()["metadata"]["name"] == "pod-1199");
  CHECK(list->items.back()["kind"] == "Pod");
  CHECK(list->resource_version == "9");
  CHECK(script.requests.size() == 3);
  CHECK(script.requests[2].query("labelSelector") == "a%3Db%2Cc");
}

TEST_CASE("410 in the middle of a list begins it anew, and gives up in the end") {
  Script script({Ok(PodPage(0, 2, "t1")), No(410, "Expired"), Ok(PodPage(0, 3, ""))});
  const auto list = script.Connect()->List(Pods(), "default", {});
  REQUIRE(list.ok());
  CHECK(list->items.size() == 3);

  Script never({[](FakeConnection& c, const FakeRequest& request) {
    if (request.query("continue").empty()) {
      c.Answer(200, PodPage(0, 2, "t1"));
    } else {
      c.Refuse(410, "Expired", "too old");
    }
  }});
  CHECK(never.Connect()->List(Pods(), "default", {}).status().code() == StatusCode::kConflict);
  CHECK(never.requests.size() == 8);
}

TEST_CASE("a list that goes round for ever is noticed") {
  Script script({Ok(PodPage(0, 1, "again"))});
  CHECK(script.Connect()->List(Pods(), "", {}).status().code() == StatusCode::kDataLoss);
}

TEST_CASE("the server's address may have a path, and a bad one is refused") {
  Script script({Ok()});
  auto client = Client::Create({.server = script.server.url() + "/prefix"});
  REQUIRE(client.ok());
  CHECK((*client)->Get(Pods(), kName).ok());
  CHECK(script.requests[0].target == "/prefix/api/v1/namespaces/default/pods/demo-0");
  CHECK_FALSE(Client::Create({.server = "nonsense"}).ok());
}

}  // namespace
}  // namespace rouse::kube
