// The client library against a real API server: the cluster of $KUBECONFIG, in the namespace
// $ROUSE_TEST_NAMESPACE, which exists and is empty, with the CRD installed. Started by
// e2e/tests/operator/test_kube_client.py.

#include <catch2/catch.hpp>
#include <cstdlib>
#include <thread>

#include "common/tests/eventually.h"
#include "operator/kube/client.h"
#include "operator/kube/events.h"
#include "operator/kube/informer.h"
#include "operator/kube/leader.h"

namespace rouse::kube {
namespace {

using namespace std::chrono_literals;
using Catch::Contains;
using test::Eventually;

std::string Namespace() {
  const char* name = std::getenv("ROUSE_TEST_NAMESPACE");
  REQUIRE(name != nullptr);
  return name;
}

std::unique_ptr<Client> Connect(ClientOptions options = {}, const char* variable = "KUBECONFIG") {
  const char* path = std::getenv(variable);
  REQUIRE(path != nullptr);
  const auto config = LoadConfig(path);
  INFO(config.status().ToString());
  REQUIRE(config.ok());
  auto client = Client::Create(*config, options);
  REQUIRE(client.ok());
  return *std::move(client);
}

Json ConfigMap(const std::string& name, const std::string& value) {
  return {{"metadata", {{"namespace", Namespace()}, {"name", name}, {"labels", {{"t", "kube"}}}}},
          {"data", {{"k", value}}}};
}

TEST_CASE("objects are created, read, patched, replaced and deleted under their conditions") {
  auto client = Connect();
  const ObjectName name{Namespace(), "one"};
  CHECK(client->Get(ConfigMaps(), name).status().code() == StatusCode::kNotFound);
  auto made = client->Create(ConfigMaps(), ConfigMap("one", "1"));
  INFO(made.status().ToString());
  REQUIRE(made.ok());
  CHECK(client->Create(ConfigMaps(), ConfigMap("one", "1")).status().code() ==
        StatusCode::kAlreadyExists);

  REQUIRE(client->MergePatch(ConfigMaps(), name, {{"data", {{"k", "2"}}}}, {}).ok());
  Json stale = *made;
  stale["data"]["k"] = "3";
  const Status conflict = client->Update(ConfigMaps(), stale).status();
  CHECK(conflict.code() == StatusCode::kConflict);
  CHECK_THAT(conflict.message(), Contains("one"));
  CHECK(client
            ->MergePatch(ConfigMaps(), name,
                         {{"metadata", {{"resourceVersion", MetaString(*made, "resourceVersion")}}},
                          {"data", {{"k", "4"}}}},
                         {})
            .status()
            .code() == StatusCode::kConflict);
  auto now = client->Get(ConfigMaps(), name);
  REQUIRE(now.ok());
  CHECK((*now)["data"]["k"] == "2");

  CHECK(client->Delete(ConfigMaps(), name, {.uid = "not-this-one"}).code() ==
        StatusCode::kConflict);
  CHECK(
      client->Delete(ConfigMaps(), name, {.resource_version = MetaString(*made, "resourceVersion")})
          .code() == StatusCode::kConflict);
  CHECK(client
            ->Delete(ConfigMaps(), name,
                     {.uid = MetaString(*now, "uid"),
                      .resource_version = MetaString(*now, "resourceVersion")})
            .ok());
  CHECK(client->Delete(ConfigMaps(), name, {}).code() == StatusCode::kNotFound);
  const Status invalid = client->Create(ConfigMaps(), ConfigMap("Not A Name", "1")).status();
  CHECK(invalid.code() == StatusCode::kInvalidArgument);
  CHECK_THAT(invalid.message(), Contains("metadata.name"));
}

TEST_CASE("server-side apply owns its fields, and takes those of others only by force") {
  auto client = Connect();
  const ObjectName name{Namespace(), "applied"};
  REQUIRE(client->Apply(ConfigMaps(), ConfigMap("applied", "a"), {.field_manager = "first"}).ok());
  CHECK(client
            ->Apply(ConfigMaps(), ConfigMap("applied", "b"),
                    {.field_manager = "second", .force = false})
            .status()
            .code() == StatusCode::kConflict);
  REQUIRE(client->Apply(ConfigMaps(), ConfigMap("applied", "b"), {.field_manager = "second"}).ok());
  CHECK((*client->Get(ConfigMaps(), name))["data"]["k"] == "b");
  CHECK(client->Delete(ConfigMaps(), name, {.propagation = Propagation::kForeground}).ok());
}

TEST_CASE("the status of a ModelService is patched beside its spec") {
  auto client = Connect();
  const ObjectName name{Namespace(), "ms"};
  const char* example = std::getenv("ROUSE_TEST_MODELSERVICE");
  REQUIRE(example != nullptr);
  Json object = Json::parse(example);
  object["metadata"] = {{"namespace", name.ns}, {"name", name.name}};
  const auto made = client->Create(ModelServices(), object);
  INFO(made.status().ToString());
  REQUIRE(made.ok());
  const auto patched =
      client->MergePatch(ModelServices(), name, {{"status", {{"observedGeneration", 1}}}},
                         {.field_manager = "rouse-operator", .subresource = "status"});
  INFO(patched.status().ToString());
  REQUIRE(patched.ok());
  CHECK((*client->Get(ModelServices(), name))["status"]["observedGeneration"] == 1);
  CHECK((*patched)["metadata"]["generation"] == 1);
  CHECK(client->Delete(ModelServices(), name, {}).ok());
}

TEST_CASE("an informer lists in pages and follows, over many watches, without a second list") {
  auto client = Connect();
  for (int i = 0; i < 120; ++i) {
    REQUIRE(client->Create(ConfigMaps(), ConfigMap("many-" + std::to_string(i), "0")).ok());
  }
  const auto list =
      client->List(ConfigMaps(), Namespace(), {.label_selector = "t=kube", .page_size = 25});
  REQUIRE(list.ok());
  CHECK(list->items.size() == 120);

  Store<Json> store(KeepWhole);
  Informer informer(*client, store,
                    {.resource = ConfigMaps(),
                     .ns = Namespace(),
                     .label_selector = "t=kube",
                     .page_size = 25,
                     .list_watch = {.watch_timeout = 1s}});
  REQUIRE(informer.WaitSynced(15s));
  CHECK(store.size() == 120);
  for (int i = 0; i < 40; ++i) {
    const std::string id = std::to_string(i);
    REQUIRE(
        client->MergePatch(ConfigMaps(), {Namespace(), "many-" + id}, {{"data", {{"k", "1"}}}}, {})
            .ok());
    REQUIRE(
        client->Delete(ConfigMaps(), {Namespace(), "many-" + std::to_string(119 - i)}, {}).ok());
    std::this_thread::sleep_for(80ms);
  }
  const auto followed = [&] {
    if (store.size() != 80) return false;
    for (int i = 0; i < 40; ++i) {
      const auto map = store.Get(Namespace() + "/many-" + std::to_string(i));
      if (map == nullptr || (*map)["data"]["k"] != "1") return false;
    }
    return true;
  };
  CHECK(Eventually(followed));
  CHECK(informer.counters().lists == 1);
  CHECK(informer.counters().watches >= 2);
  CHECK(informer.counters().garbage == 0);
  CHECK(informer.last_error().empty());
  CHECK_FALSE((*store.All()[0])["metadata"].contains("managedFields"));
}

TEST_CASE("a continue token that the server does not know lists anew") {
  auto client = Connect();
  const FetchedPage page = client->FetchListPage(ConfigMaps(), Namespace(), {}, "bm9uc2Vuc2U");
  CHECK_FALSE(page.text.ok());
  REQUIRE(page.error.has_value());
  ListWatch machine(ConfigMaps(), {});
  machine.Next(0);
  machine.OnPage(R"({"metadata":{"resourceVersion":"1","continue":"bm9uc2Vuc2U"},"items":[]})");
  REQUIRE(machine.Next(0).continue_token == "bm9uc2Vuc2U");
  machine.OnPageFailed(page.error);
  CHECK(machine.Next(0).continue_token.empty());
}

TEST_CASE("a watch from a version of the future, at which servers are silent, ends in a list") {
  auto client = Connect();
  ListWatch machine(ConfigMaps(), {});
  machine.Next(0);
  machine.OnPage(R"({"metadata":{"resourceVersion":"999999999"},"items":[]})");
  const http::CancelSource cancel;
  for (int i = 0; i < 4 && machine.state() == ListWatch::State::kWatching; ++i) {
    const Command command = machine.Next(0);
    std::optional<ApiError> error;
    const Status status = client->Watch(
        ConfigMaps(), Namespace(), {}, command.resource_version, 300s, 1500ms, cancel,
        [&machine](std::string_view line) {
          std::vector<StoreEvent> events;
          return machine.OnLine(line, &events);
        },
        &error);
    INFO(status.ToString());
    CHECK(status.code() == StatusCode::kDeadlineExceeded);
    machine.OnWatchEnded(StreamEnd::kSilent, 1500ms, error);
  }
  CHECK(machine.state() == ListWatch::State::kListing);
}

TEST_CASE("leadership is taken, kept, released and taken over on a real Lease") {
  auto client = Connect({.timeout = 3s, .retries = 0});
  const LeaderOptions base{.lease = {Namespace(), "test-lease"},
                           .identity = "a",
                           .timing = {.duration = 60s, .renew_deadline = 40s, .retry = 200ms}};
  auto a = LeaderElector::Start(*client, base);
  REQUIRE(a.ok());
  REQUIRE(Eventually([&] { return (*a)->leading(); }));
  LeaderOptions other = base;
  other.identity = "b";
  auto b = LeaderElector::Start(*client, other);
  REQUIRE(b.ok());
  std::this_thread::sleep_for(1s);
  CHECK((*a)->leading());
  CHECK_FALSE((*b)->leading());
  (*a).reset();
  CHECK(Eventually([&] { return (*b)->leading(); }));  // Long before the lease has run out.
  const auto lease = client->Get(Leases(), base.lease);
  REQUIRE(lease.ok());
  CHECK((*lease)["spec"]["holderIdentity"] == "b");
  CHECK((*lease)["spec"]["leaseTransitions"] == 1);
}

TEST_CASE("events are accepted, and their repetitions become a series") {
  auto client = Connect();
  auto about = client->Create(ConfigMaps(), ConfigMap("subject", "1"));
  REQUIRE(about.ok());
  {
    EventRecorder recorder(*client, {.instance = "kube-api-test"});
    for (int i = 0; i < 3; ++i) {
      recorder.Emit({.regarding = ReferenceTo(ConfigMaps(), *about),
                     .type = EventType::kWarning,
                     .reason = "Tested",
                     .action = "Test",
                     .note = "an event of the test"});
    }
    REQUIRE(Eventually([&] { return recorder.written() >= 1; }));
    CHECK(recorder.dropped() == 0);
  }
  const auto events = client->List(Events(), Namespace(), {.field_selector = "reason=Tested"});
  REQUIRE(events.ok());
  REQUIRE(events->items.size() == 1);
  CHECK(events->items[0]["series"]["count"] == 3);
  CHECK(events->items[0]["type"] == "Warning");
}

TEST_CASE("missing rights and unknown tokens are told apart, each with its remedy") {
  auto nobody = Connect({}, "ROUSE_TEST_NOBODY_KUBECONFIG");
  const Status forbidden = nobody->List(Pods(), Namespace(), {}).status();
  CHECK(forbidden.code() == StatusCode::kFailedPrecondition);
  CHECK_THAT(forbidden.message(), Contains("nobody") && Contains("Role"));

  auto config = LoadConfig(std::getenv("KUBECONFIG"));
  REQUIRE(config.ok());
  config->token = "wrong";
  config->tls.certificate_file.clear();
  config->tls.key_file.clear();
  auto stranger = Client::Create(*config);
  REQUIRE(stranger.ok());
  const Status unknown = (*stranger)->List(Pods(), Namespace(), {}).status();
  CHECK(unknown.code() == StatusCode::kFailedPrecondition);
  CHECK_THAT(unknown.message(), Contains("token"));
}

TEST_CASE("a server that the CA does not vouch for is not spoken to") {
  auto config = LoadConfig(std::getenv("KUBECONFIG"));
  REQUIRE(config.ok());
  config->tls.ca_file.clear();  // The system's, which does not know this cluster's.
  auto client = Client::Create(*config, {.retries = 0});
  REQUIRE(client.ok());
  const Status status = (*client)->List(Pods(), Namespace(), {}).status();
  CHECK(status.code() == StatusCode::kUnavailable);
  INFO(status.message());
  CHECK_THAT(status.message(), Contains("CA"));
}

}  // namespace
}  // namespace rouse::kube
