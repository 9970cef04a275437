#include "operator/kube/list_watch.h"

#include <catch2/catch.hpp>
#include <random>

#include "operator/kube/continue_token.h"
#include "operator/kube/store.h"
#include "operator/tests/seeds.h"

namespace rouse::kube {
namespace {

using namespace std::chrono_literals;
using Kind = StoreEvent::Kind;

Json Pod(const std::string& name, int version) {
  return {
      {"apiVersion", "v1"},
      {"kind", "Pod"},
      {"metadata",
       {{"namespace", "default"}, {"name", name}, {"resourceVersion", std::to_string(version)}}}};
}

Json Page(std::vector<Json> items, int version, const std::string& next = "") {
  for (Json& item : items) {  // As real servers send them.
    item.erase("kind");
    item.erase("apiVersion");
  }
  Json metadata = {{"resourceVersion", std::to_string(version)}};
  if (!next.empty()) metadata["continue"] = next;
  return {{"kind", "PodList"}, {"metadata", metadata}, {"items", items}};
}

std::string Line(const std::string& type, const Json& object) {
  return Json{{"type", type}, {"object", object}}.dump();
}

std::string Bookmark(int version) {
  return Line("BOOKMARK",
              {{"kind", "Pod"}, {"metadata", {{"resourceVersion", std::to_string(version)}}}});
}

std::string Error(int code, const std::string& message = "refused") {
  return Line("ERROR", {{"kind", "Status"}, {"code", code}, {"message", message}});
}

std::vector<Kind> Kinds(const std::vector<StoreEvent>& events) {
  std::vector<Kind> kinds;
  for (const StoreEvent& event : events) kinds.push_back(event.kind);
  return kinds;
}

ApiError Refusal(int http_status) {
  ApiError error;
  error.http_status = http_status;
  return error;
}

// A machine that has listed one pod at version 10 and was told to watch.
ListWatch Watching() {
  ListWatch machine(Pods(), {});
  machine.Next(0);
  machine.OnPage(Page({Pod("a", 3)}, 10).dump());
  machine.Next(0);
  return machine;
}

TEST_CASE("a list in pages becomes one relist, then a watch from the list's version") {
  ListWatch machine(Pods(), {.watch_timeout = 100s});
  Command command = machine.Next(0.5);
  CHECK(command.kind == Command::Kind::kListPage);
  CHECK(command.continue_token.empty());
  CHECK(command.delay == 0ms);

  auto events = machine.OnPage(Page({Pod("a", 3)}, 10, "more").dump());
  CHECK(Kinds(events) == std::vector{Kind::kInitBegin, Kind::kInitApply});
  CHECK(events[1].object["kind"] == "Pod");
  CHECK(events[1].object["apiVersion"] == "v1");

  command = machine.Next(0.5);
  CHECK(command.kind == Command::Kind::kListPage);
  CHECK(command.continue_token == "more");
  CHECK(Kinds(machine.OnPage(Page({Pod("b", 4)}, 10).dump())) ==
        std::vector{Kind::kInitApply, Kind::kInitDone});

  command = machine.Next(0.5);
  CHECK(command.kind == Command::Kind::kWatch);
  CHECK(command.resource_version == "10");
  CHECK(command.timeout == 150s);
  CHECK(command.delay == 0ms);
  CHECK(machine.counters().lists == 1);
}

TEST_CASE("who set which field is not kept, in pages and in events") {
  Json pod = Pod("a", 3);
  pod["metadata"]["annotations"] = {{"managedFields", "mine"}};
  Json sent = pod;
  sent["metadata"]["managedFields"] = {{{"manager", "kubectl"}}};
  ListWatch machine(Pods(), {});
  machine.Next(0);
  auto events = machine.OnPage(Page({sent}, 10).dump());
  REQUIRE(events.size() == 3);
  CHECK(events[1].object == pod);
  machine.Next(0);
  events.clear();
  REQUIRE(machine.OnLine(Line("MODIFIED", sent), &events).ok());
  REQUIRE(events.size() == 1);
  CHECK(events[0].object == pod);
}

TEST_CASE("the next page's token is read from a page's head") {
  CHECK(ContinueTokenOf(Page({Pod("a", 3)}, 10, "more").dump())
            .empty());  // Keys sorted: items first.
  CHECK(
      ContinueTokenOf(R"({"kind":"PodList","metadata":{"x":{"continue":"no"},"y":[1,null,2.5,true],
                            "continue":"more","resourceVersion":"1"},"items":[{)") == "more");
  CHECK(ContinueTokenOf(R"({"metadata":{"resourceVersion":"1"},"continue":"no","items":[]})")
            .empty());
  CHECK(ContinueTokenOf(R"({"items":[{"metadata":{"continue":"no"}}]})").empty());
  CHECK(ContinueTokenOf(R"({"metadata":{"continue":7}})").empty());
  for (const std::string text :
       {"", "null", "7", "\"continue\"", "[\"continue\"]", "{\"metadata"}) {
    CHECK(ContinueTokenOf(text).empty());
  }
  CHECK(ContinueTokenOf("{\"metadata\":" + std::string(1'000'000, '[')).empty());
}

TEST_CASE("an empty list is a list, with an empty array or with null") {
  for (const Json& items : {Json::array(), Json(nullptr)}) {
    ListWatch machine(Pods(), {});
    machine.Next(0);
    CHECK(Kinds(machine.OnPage(
              Json{{"metadata", {{"resourceVersion", "1"}}}, {"items", items}}.dump())) ==
          std::vector{Kind::kInitBegin, Kind::kInitDone});
  }
}

TEST_CASE("events and bookmarks move the version from which the watch resumes") {
  ListWatch machine = Watching();
  std::vector<StoreEvent> events;
  REQUIRE(machine.OnLine(Line("ADDED", Pod("b", 11)), &events).ok());
  REQUIRE(machine.OnLine(Line("MODIFIED", Pod("a", 12)), &events).ok());
  REQUIRE(machine.OnLine(Line("DELETED", Pod("b", 13)), &events).ok());
  REQUIRE(machine.OnLine("", &events).ok());
  CHECK(Kinds(events) == std::vector{Kind::kApply, Kind::kApply, Kind::kDelete});
  CHECK(machine.resource_version() == "13");
  REQUIRE(machine.OnLine(Bookmark(20), &events).ok());
  CHECK(events.size() == 3);

  for (const StreamEnd end : {StreamEnd::kClosed, StreamEnd::kBroken, StreamEnd::kSilent}) {
    machine.OnWatchEnded(end, 60s, std::nullopt);
    const Command command = machine.Next(0);
    CHECK(command.kind == Command::Kind::kWatch);
    CHECK(command.resource_version == "20");
    REQUIRE(machine.OnLine(Bookmark(20), &events).ok());
  }
  CHECK(machine.counters().lists == 1);
}

TEST_CASE("a watch that ends in order resumes without a wait, one that breaks after a short one") {
  ListWatch machine = Watching();
  machine.OnWatchEnded(StreamEnd::kClosed, 300s, std::nullopt);
  CHECK(machine.Next(0.5).delay == 0ms);
  machine.OnWatchEnded(StreamEnd::kBroken, 300s, std::nullopt);
  const auto delay = machine.Next(0.5).delay;
  CHECK(delay >= 100ms);
  CHECK(delay <= 200ms);
}

TEST_CASE("an unreachable server is asked less and less often, and the version is kept") {
  ListWatch machine = Watching();
  std::chrono::milliseconds last{0};
  for (int i = 0; i < 20; ++i) {
    machine.OnWatchEnded(StreamEnd::kBroken, 0ms, std::nullopt);
    const Command command = machine.Next(0.99);
    CHECK(command.kind == Command::Kind::kWatch);
    CHECK(command.resource_version == "10");
    CHECK(command.delay >= last);
    last = command.delay;
  }
  CHECK(last > 29s);
  CHECK(last <= 30s);
  std::vector<StoreEvent> events;
  REQUIRE(machine.OnLine(Bookmark(11), &events).ok());
  machine.OnWatchEnded(StreamEnd::kClosed, 60s, std::nullopt);
  CHECK(machine.Next(0.99).delay == 0ms);
}

TEST_CASE("410 lists anew, whether as HTTP status or as an ERROR event") {
  ListWatch machine = Watching();
  SECTION("as HTTP status") {
    machine.OnWatchEnded(StreamEnd::kBroken, 1ms, Refusal(410));
  }
  SECTION("as ERROR event") {
    std::vector<StoreEvent> events;
    CHECK_FALSE(machine.OnLine(Error(410, "too old resource version"), &events).ok());
    CHECK(events.empty());
    machine.OnWatchEnded(StreamEnd::kBroken, 1ms, std::nullopt);
  }
  SECTION("as ERROR event without a code") {
    std::vector<StoreEvent> events;
    CHECK_FALSE(machine.OnLine(Line("ERROR", {{"reason", "Expired"}}), &events).ok());
    machine.OnWatchEnded(StreamEnd::kClosed, 1ms, std::nullopt);
  }
  CHECK(machine.counters().gone == 1);
  const Command command = machine.Next(0.5);
  CHECK(command.kind == Command::Kind::kListPage);
  CHECK(command.continue_token.empty());
  CHECK(machine.counters().lists == 2);
}

TEST_CASE("a version from the future, as after a restored backup, lists anew") {
  ListWatch machine = Watching();
  ApiError error = Refusal(504);
  error.message = "Too large resource version: 10, current: 5";
  machine.OnWatchEnded(StreamEnd::kBroken, 1ms, error);
  CHECK(machine.Next(0).kind == Command::Kind::kListPage);
}

TEST_CASE("a server that answers every watch with 410 is listed with growing pauses") {
  ListWatch machine(Pods(), {});
  std::chrono::milliseconds last{0};
  for (int i = 0; i < 12; ++i) {
    const Command list = machine.Next(0.9);
    REQUIRE(list.kind == Command::Kind::kListPage);
    CHECK(list.delay >= last);
    last = list.delay;
    machine.OnPage(Page({Pod("a", 3)}, 10).dump());
    REQUIRE(machine.Next(0.9).delay == 0ms);
    machine.OnWatchEnded(StreamEnd::kBroken, 1ms, Refusal(410));
  }
  CHECK(last > 28s);
}

TEST_CASE("410 or 400 in the middle of paging begins the list anew") {
  for (const int code : {410, 400}) {
    ListWatch machine(Pods(), {});
    machine.Next(0);
    machine.OnPage(Page({Pod("a", 3)}, 10, "more").dump());
    machine.Next(0);
    machine.OnPageFailed(Refusal(code));
    const Command command = machine.Next(0);
    CHECK(command.kind == Command::Kind::kListPage);
    CHECK(command.continue_token.empty());
    CHECK(Kinds(machine.OnPage(Page({Pod("b", 4)}, 11).dump())) ==
          std::vector{Kind::kInitBegin, Kind::kInitApply, Kind::kInitDone});
  }
}

TEST_CASE("any other failure of a page asks for the same page again") {
  ListWatch machine(Pods(), {});
  machine.Next(0);
  machine.OnPage(Page({Pod("a", 3)}, 10, "more").dump());
  machine.Next(0);
  machine.OnPageFailed(std::nullopt);
  Command command = machine.Next(0);
  CHECK(command.continue_token == "more");
  CHECK(command.delay == 100ms);

  ApiError busy = Refusal(429);
  busy.retry_after = 7s;
  machine.OnPageFailed(busy);
  command = machine.Next(0);
  CHECK(command.continue_token == "more");
  CHECK(command.delay == 7s);
}

TEST_CASE("a refused first page is tried again with growing waits") {
  ListWatch machine(Pods(), {});
  machine.Next(0);
  machine.OnPageFailed(Refusal(403));
  CHECK(machine.Next(0).delay == 100ms);
  machine.OnPageFailed(Refusal(410));
  CHECK(machine.Next(0).delay == 200ms);
}

TEST_CASE("Retry-After of a refused watch is honoured") {
  ListWatch machine = Watching();
  ApiError busy = Refusal(429);
  busy.retry_after = 3s;
  machine.OnWatchEnded(StreamEnd::kBroken, 1ms, busy);
  const Command command = machine.Next(0);
  CHECK(command.kind == Command::Kind::kWatch);
  CHECK(command.resource_version == "10");
  CHECK(command.delay == 3s);
}

TEST_CASE("garbage in a watch ends the stream, yields nothing and resumes at the last version") {
  const std::string line = GENERATE(
      as<std::string>(), "not JSON", "{\"type\":\"ADDED\"", "[]", "42", "null", "{}",
      "{\"type\":\"ADDED\"}", "{\"type\":\"ADDED\",\"object\":5}",
      "{\"type\":\"JUMPED\",\"object\":{}}", "{\"type\":7,\"object\":{}}",
      "{\"type\":\"BOOKMARK\",\"object\":{}}",
      "{\"type\":\"ADDED\",\"object\":{\"metadata\":{\"name\":\"a\"}}}",
      "{\"type\":\"ADDED\",\"object\":{\"metadata\":{\"name\":\"a\",\"namespace\":\"b\"}}}",
      "{\"type\":\"ADDED\",\"object\":{\"kind\":\"Node\",\"metadata\":{\"name\":\"a\","
      "\"namespace\":"
      "\"b\",\"resourceVersion\":\"7\"}}}",
      "{\"type\":\"ADDED\",\"object\":{\"metadata\":[]}}", "\xff\xfe\x00",
      "<html>502 Bad Gateway</html>");
  CAPTURE(line);
  ListWatch machine = Watching();
  std::vector<StoreEvent> events;
  const Status status = machine.OnLine(line, &events);
  CHECK(status.code() == StatusCode::kDataLoss);
  CHECK(status.message().find("pods") != std::string::npos);
  CHECK(events.empty());
  machine.OnWatchEnded(StreamEnd::kBroken, 5ms, std::nullopt);
  const Command command = machine.Next(0);
  CHECK(command.kind == Command::Kind::kWatch);
  CHECK(command.resource_version == "10");
  CHECK(command.delay > 0ms);
}

TEST_CASE("nested nonsense does not overflow the stack") {
  ListWatch machine = Watching();
  std::vector<StoreEvent> events;
  CHECK_FALSE(machine.OnLine(std::string(1'000'000, '['), &events).ok());
}

TEST_CASE("two garbage or silent streams without progress list anew; progress forgives") {
  ListWatch machine = Watching();
  std::vector<StoreEvent> events;
  CHECK_FALSE(machine.OnLine("garbage", &events).ok());
  machine.OnWatchEnded(StreamEnd::kBroken, 5ms, std::nullopt);
  CHECK(machine.Next(0).kind == Command::Kind::kWatch);
  REQUIRE(machine.OnLine(Bookmark(30), &events).ok());
  CHECK_FALSE(machine.OnLine("garbage", &events).ok());
  machine.OnWatchEnded(StreamEnd::kBroken, 5ms, std::nullopt);
  for (int i = 0; i < 2; ++i) {
    CHECK(machine.Next(0).kind == Command::Kind::kWatch);
    machine.OnWatchEnded(StreamEnd::kSilent, 90s, std::nullopt);
  }
  CHECK(machine.Next(0).kind == Command::Kind::kListPage);
}

TEST_CASE("a page that cannot be read yields nothing and is asked for again") {
  const Json bad = GENERATE(
      Json(nullptr), Json(3), Json::object(), Json{{"items", Json::array()}},
      Json{{"metadata", {{"resourceVersion", "3"}}}},
      Json{{"metadata", {{"resourceVersion", "3"}}}, {"items", {{{"metadata", {{"name", ""}}}}}}},
      Json{{"metadata", {{"resourceVersion", "3"}}}, {"items", Json::array({7})}},
      Json{{"metadata", {{"resourceVersion", "3"}, {"continue", "more"}}}, {"items", nullptr}});
  ListWatch machine(Pods(), {});
  machine.Next(0);
  machine.OnPage(Page({Pod("a", 3)}, 10, "more").dump());
  machine.Next(0);
  CHECK(machine.OnPage(bad.dump()).empty());
  const Command command = machine.Next(0);
  CHECK(command.continue_token == "more");
  CHECK(command.delay > 0ms);
  CHECK(machine.counters().garbage == 1);
}

TEST_CASE("a watch that closes at once again and again is not asked for without a pause") {
  ListWatch machine = Watching();
  machine.OnWatchEnded(StreamEnd::kClosed, 3ms, std::nullopt);
  const auto first = machine.Next(0).delay;
  machine.OnWatchEnded(StreamEnd::kClosed, 3ms, std::nullopt);
  CHECK(first > 0ms);
  CHECK(machine.Next(0).delay > first);
}

// A server in memory with a history that it forgets piece by piece, and every fault the machine is
// made for, at random.
class FakeServer {
 public:
  using State = std::map<std::string, std::string>;  // Key to version.

  void Mutate(std::mt19937& random) {
    const std::string name = "pod-" + std::to_string(random() % 12);
    ++version_;
    const std::string key = "default/" + name;
    if (objects_.contains(key) && random() % 3 == 0) {
      log_.push_back({version_, Line("DELETED", Pod(name, version_))});
      objects_.erase(key);
    } else {
      log_.push_back(
          {version_, Line(objects_.contains(key) ? "MODIFIED" : "ADDED", Pod(name, version_))});
      objects_[key] = std::to_string(version_);
    }
    history_[version_] = objects_;
  }
  void Compact() { oldest_ = version_; }

  Result<Json> List(const std::string& token, std::size_t limit) const {
    int at = version_;
    std::size_t from = 0;
    if (!token.empty()) {
      at = std::stoi(token);
      from = std::stoul(token.substr(token.find('/') + 1));
      if (at < oldest_) return Status(StatusCode::kConflict, "expired");
    }
    const State& state = history_.at(at);
    std::vector<Json> items;
    std::size_t index = 0;
    for (const auto& [key, version] : state) {
      if (index >= from && index < from + limit) {
        items.push_back(Pod(ObjectName::FromKey(key).name, std::stoi(version)));
      }
      ++index;
    }
    return Page(
        items, at,
        from + limit < state.size() ? std::to_string(at) + "/" + std::to_string(from + limit) : "");
  }

  const State& At(int version) const { return history_.at(version); }
  int version() const { return version_; }
  int oldest() const { return oldest_; }
  const std::vector<std::pair<int, std::string>>& log() const { return log_; }

 private:
  int version_ = 1;
  int oldest_ = 1;
  State objects_;
  std::map<int, State> history_{{1, {}}};
  std::vector<std::pair<int, std::string>> log_;
};

FakeServer::State StateOf(const Store<Json>& store) {
  FakeServer::State state;
  for (const auto& object : store.All()) {
    state[NameOf(*object).Key()] = MetaString(*object, "resourceVersion");
  }
  return state;
}

TEST_CASE("whatever happens, the store is what the server said at the machine's version") {
  const auto seed = GENERATE(range(1u, Seeds(120)));
  std::mt19937 random(seed);
  FakeServer server;
  Store<Json> store(KeepWhole);
  ListWatch machine(Pods(), {});
  const auto take = [&](std::vector<StoreEvent> events) {
    const auto before = StateOf(store);
    for (StoreEvent& event : events) {
      const bool partial = event.kind == Kind::kInitBegin || event.kind == Kind::kInitApply;
      store.Take(std::move(event));
      if (partial) REQUIRE(StateOf(store) == before);  // Readers never see half a relist.
    }
  };
  bool calm = false;  // The last rounds are without faults: then it must catch up.
  for (int round = 0; round < 300; ++round) {
    if (round == 270) calm = true;
    if (!calm) {
      for (auto n = random() % 4; n > 0; --n) server.Mutate(random);
      if (random() % 6 == 0) server.Compact();
    }
    const auto fault = calm ? 99u : random() % 20;
    const Command command = machine.Next(0);
    if (command.kind == Command::Kind::kListPage) {
      if (fault == 0) {
        machine.OnPageFailed(std::nullopt);
      } else if (fault == 1) {
        machine.OnPageFailed(Refusal(503));
      } else if (fault == 2) {
        take(machine.OnPage("[]"));
      } else {
        auto page = server.List(command.continue_token, 1 + random() % 4);
        if (page.ok()) {
          take(machine.OnPage(page->dump()));
        } else {
          machine.OnPageFailed(Refusal(410));
        }
      }
      continue;
    }
    const int from = std::stoi(command.resource_version);
    if (from < server.oldest()) {
      if (random() % 2 == 0) {
        machine.OnWatchEnded(StreamEnd::kBroken, 1ms, Refusal(410));
      } else {
        std::vector<StoreEvent> events;
        REQUIRE_FALSE(machine.OnLine(Error(410), &events).ok());
        machine.OnWatchEnded(StreamEnd::kBroken, 1ms, std::nullopt);
      }
      continue;
    }
    StreamEnd end = StreamEnd::kClosed;
    for (const auto& [version, line] : server.log()) {
      if (version <= from) continue;
      std::vector<StoreEvent> events;
      const auto trouble = calm ? 99u : random() % 25;
      if (trouble == 0) {  // Cut in the middle of a line, which is handed on as it is.
        CHECK_FALSE(machine.OnLine(line.substr(0, 1 + random() % (line.size() - 1)), &events).ok());
      } else if (trouble == 1) {
        CHECK_FALSE(machine.OnLine("\x01\x02garbage", &events).ok());
      } else if (trouble == 2) {
        CHECK_FALSE(machine.OnLine(Error(500), &events).ok());
      }
      if (trouble <= 3) {  // 3: the connection is lost between two lines.
        end = trouble == 3 && random() % 2 == 0 ? StreamEnd::kSilent : StreamEnd::kBroken;
        REQUIRE(events.empty());
        break;
      }
      REQUIRE(machine.OnLine(line, &events).ok());
      take(std::move(events));
      if (random() % 5 == 0) {
        std::vector<StoreEvent> none;
        REQUIRE(machine.OnLine(Bookmark(version), &none).ok());
        REQUIRE(none.empty());
      }
      REQUIRE(StateOf(store) == server.At(std::stoi(machine.resource_version())));
    }
    machine.OnWatchEnded(end, random() % 2 == 0 ? 1ms : 90'000ms, std::nullopt);
    if (machine.state() == ListWatch::State::kWatching) {
      REQUIRE(StateOf(store) == server.At(std::stoi(machine.resource_version())));
    }
  }
  CHECK(StateOf(store) == server.At(server.version()));
}

TEST_CASE("random bytes never crash the machine nor reach the store") {
  std::mt19937 random(7);
  ListWatch machine = Watching();
  const std::string good = Line("ADDED", Pod("b", 11));
  for (int i = 0; i < 20'000; ++i) {
    std::string line = good;
    for (auto n = 1 + random() % 6; n > 0; --n) {
      const std::size_t at = random() % line.size();
      switch (random() % 3) {
        case 0:
          line[at] = static_cast<char>(random());
          break;
        case 1:
          line.erase(at, 1 + random() % 20);
          break;
        default:
          line.insert(at, 1, "{}[]\":,\\0n"[random() % 10]);
      }
      if (line.empty()) line = "x";
    }
    std::vector<StoreEvent> events;
    const Status status = machine.OnLine(line, &events);
    if (!status.ok()) {
      REQUIRE(events.empty());
    }
    for (const StoreEvent& event : events) {
      REQUIRE_FALSE(NameOf(event.object).name.empty());
      REQUIRE_FALSE(MetaString(event.object, "resourceVersion").empty());
    }
  }
}

}  // namespace
}  // namespace rouse::kube
