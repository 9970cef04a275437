#include "operator/kube/informer.h"

#include <catch2/catch.hpp>
#include <deque>
#include <random>

#include "common/tests/eventually.h"
#include "operator/tests/fake_http_server.h"

namespace rouse::kube {
namespace {

using namespace std::chrono_literals;
using test::Eventually;

// A small API server for one resource, with a history it can forget and faults on demand.
class FakeKube {
 public:
  enum class Fault {
    kGoneStatus,   ///< The next watch is answered with HTTP 410.
    kGoneEvent,    ///< ... with an ERROR event 410.
    kGarbage,      ///< ... with a line of garbage.
    kTruncated,    ///< ... with half a line, then closed.
    kSilence,      ///< ... with nothing at all, for ever.
    kDropped,      ///< ... by closing the connection.
    kThrottled,    ///< ... with 429 and Retry-After: 0.
    kGonePage,     ///< The next page that is not the first is answered with 410.
    kGarbagePage,  ///< The next page is no JSON.
  };

  explicit FakeKube(std::string plural_path = "/api/v1/pods") : path_(std::move(plural_path)) {}
  ~FakeKube() { server.Stop(); }

  void Put(const std::string& name, const std::string& label = "") {
    Change(name, [&](Json* pod) {
      *pod = {{"kind", "Pod"},
              {"apiVersion", "v1"},
              {"metadata", {{"namespace", "default"}, {"name", name}, {"labels", {{"l", label}}}}}};
    });
  }
  void Remove(const std::string& name) { Change(name, nullptr); }
  void Inject(Fault fault) {
    std::lock_guard lock(mutex_);
    faults_.push_back(fault);
  }
  std::size_t faults_left() {
    std::lock_guard lock(mutex_);
    return faults_.size();
  }
  /// Sends a bookmark to the open watches.
  void Bookmark() {
    std::lock_guard lock(mutex_);
    ++version_;
    log_.push_back(
        {version_,
         {{"type", "BOOKMARK"},
          {"object",
           {{"kind", "Pod"}, {"metadata", {{"resourceVersion", std::to_string(version_)}}}}}}});
  }
  /// A watch has sent everything that there is.
  bool Sent() {
    std::lock_guard lock(mutex_);
    return sent_ == version_;
  }
  /// Ends open watches in order.
  void EndWatches() { ++generation_; }
  /// Forgets all history.
  void Compact() {
    std::lock_guard lock(mutex_);
    oldest_ = version_;
  }
  std::map<std::string, std::string> State() {
    std::lock_guard lock(mutex_);
    std::map<std::string, std::string> state;
    for (const auto& [name, pod] : pods_)
      state["default/" + name] = MetaString(pod, "resourceVersion");
    return state;
  }
  std::vector<FakeRequest> requests() {
    std::lock_guard lock(mutex_);
    return requests_;
  }

  FakeHttpServer server{[this](FakeConnection& c, const FakeRequest& r) { Handle(c, r); }};

 private:
  void Change(const std::string& name, const std::function<void(Json*)>& make) {
    std::lock_guard lock(mutex_);
    ++version_;
    const bool known = pods_.contains(name);
    Json pod = known ? pods_[name] : Json();
    if (make) make(&pod);
    pod["metadata"]["resourceVersion"] = std::to_string(version_);
    log_.push_back({version_,
                    {{"type", !make   ? "DELETED"
                              : known ? "MODIFIED"
                                      : "ADDED"},
                     {"object", pod}}});
    if (make) {
      pods_[name] = pod;
    } else {
      pods_.erase(name);
    }
  }

  std::optional<Fault> TakeFault(bool watch, bool later_page) {
    std::lock_guard lock(mutex_);
    if (faults_.empty()) return std::nullopt;
    const Fault fault = faults_.front();
    const bool fits = fault == Fault::kGonePage      ? later_page
                      : fault == Fault::kGarbagePage ? !watch
                                                     : watch;
    if (!fits) return std::nullopt;
    faults_.pop_front();
    return fault;
  }

  void Handle(FakeConnection& c, const FakeRequest& request) {
    {
      std::lock_guard lock(mutex_);
      requests_.push_back(request);
    }
    if (request.path() != path_) {
      c.Refuse(404, "NotFound", "no such path");
    } else if (request.query("watch") == "true") {
      Watch(c, request);
    } else {
      List(c, request);
    }
  }

  void List(FakeConnection& c, const FakeRequest& request) {
    const std::string token = request.query("continue");
    const auto fault = TakeFault(false, !token.empty());
    if (fault == Fault::kGonePage) return void(c.Refuse(410, "Expired", "continue token expired"));
    if (fault == Fault::kGarbagePage) return void(c.Answer(200, std::string("\x01<oops>")));
    std::lock_guard lock(mutex_);
    // The snapshot of the first page, so that pages fit together.
    if (token.empty()) snapshots_[version_] = pods_;
    const int at = token.empty() ? version_ : std::stoi(token);
    const std::size_t from = token.empty() ? 0 : std::stoul(token.substr(token.find('_') + 1));
    const std::size_t limit = std::stoul(request.query("limit"));
    const auto& pods = snapshots_.at(at);
    Json items = Json::array();
    std::size_t index = 0;
    for (const auto& [name, pod] : pods) {
      if (index >= from && index < from + limit) {
        items.push_back(pod);
        items.back().erase("kind");
      }
      ++index;
    }
    Json metadata = {{"resourceVersion", std::to_string(at)}};
    if (from + limit < pods.size()) {
      metadata["continue"] = std::to_string(at) + "_" + std::to_string(from + limit);
    }
    // In the order of real servers: the items come last.
    c.Answer(200, R"({"kind":"PodList","apiVersion":"v1","metadata":)" + metadata.dump() +
                      R"(,"items":)" + items.dump() + "}");
  }

  void Watch(FakeConnection& c, const FakeRequest& request) {
    int from = std::stoi(request.query("resourceVersion"));
    const auto fault = TakeFault(true, false);
    bool gone = fault == Fault::kGoneStatus;
    {
      std::lock_guard lock(mutex_);
      gone = gone || from < oldest_;
    }
    if (gone) return void(c.Refuse(410, "Expired", "too old resource version"));
    if (fault == Fault::kThrottled) {
      return void(c.Refuse(429, "TooManyRequests", "slow down", "Retry-After: 0\r\n"));
    }
    if (fault == Fault::kDropped) return c.Drop();
    c.BeginStream();
    if (fault == Fault::kSilence) return c.HoldOpen(60s), c.Drop();
    if (fault == Fault::kGoneEvent) {
      c.Line({{"type", "ERROR"},
              {"object", {{"kind", "Status"}, {"code", 410}, {"reason", "Expired"}}}});
      return void(c.EndChunks());
    }
    if (fault == Fault::kGarbage) return c.Chunk("\x01\x02 garbage\n"), c.HoldOpen(5s), c.Drop();
    if (fault == Fault::kTruncated) {
      c.Chunk(R"({"type":"ADDED","object":{"metadata":{"na)");
      return c.Drop();
    }
    const int generation = generation_;
    while (!c.stopping() && generation_ == generation) {
      std::vector<Json> lines;
      {
        std::lock_guard lock(mutex_);
        for (const auto& [version, line] : log_) {
          if (version > from) lines.push_back(line);
          from = std::max(from, version);
        }
      }
      for (const Json& line : lines) {
        if (!c.Line(line)) return c.Drop();
      }
      {
        std::lock_guard lock(mutex_);
        sent_ = std::max(sent_, from);
      }
      if (c.PeerGone(5)) return c.Drop();
    }
    c.EndChunks();
  }

  const std::string path_;
  std::mutex mutex_;
  int version_ = 1;
  int oldest_ = 0;
  int sent_ = 0;
  std::map<std::string, Json> pods_;
  std::map<int, std::map<std::string, Json>> snapshots_;
  std::vector<std::pair<int, Json>> log_;
  std::deque<Fault> faults_;
  std::vector<FakeRequest> requests_;
  std::atomic<int> generation_{0};
};

struct Rig {
  explicit Rig(FakeKube& kube, std::chrono::milliseconds silence = 10s, int page_size = 250,
               std::string ns = "") {
    auto made = Client::Create({.server = kube.server.url()});
    REQUIRE(made.ok());
    client = *std::move(made);
    informer =
        std::make_unique<Informer>(*client, store,
                                   InformerOptions{.resource = Pods(),
                                                   .ns = ns,
                                                   .label_selector = "a=b",
                                                   .page_size = page_size,
                                                   .silence = silence,
                                                   .list_watch = {.backoff = {10ms, 200ms}}});
  }
  std::map<std::string, std::string> State() const {
    std::map<std::string, std::string> state;
    for (const auto& pod : store.All())
      state[NameOf(*pod).Key()] = MetaString(*pod, "resourceVersion");
    return state;
  }
  Store<Json> store{KeepWhole};
  std::unique_ptr<Client> client;
  std::unique_ptr<Informer> informer;
};

TEST_CASE("the store follows the server: list in pages, then every change") {
  FakeKube kube;
  for (int i = 0; i < 1200; ++i) kube.Put("p" + std::to_string(i));
  Rig rig(kube);
  REQUIRE(rig.informer->WaitSynced(10s));
  CHECK(rig.store.size() == 1200);
  CHECK(rig.State() == kube.State());
  CHECK(rig.informer->counters().lists == 1);
  kube.Put("new");
  kube.Remove("p7");
  kube.Put("p8");
  CHECK(Eventually([&] { return rig.State() == kube.State(); }));
  const auto requests = kube.requests();
  REQUIRE(requests.size() == 6);  // Five pages, one watch.
  CHECK(requests[0].query("limit") == "250");
  CHECK(requests[5].query("allowWatchBookmarks") == "true");
  CHECK(requests[5].query("labelSelector") == "a%3Db");
  CHECK(std::stoi(requests[5].query("timeoutSeconds")) >= 300);
}

// Reads the first page only when the server has been asked for the second.
class SlowSink final : public StoreSink {
 public:
  explicit SlowSink(FakeKube& kube) : kube_(kube) {}
  void Take(StoreEvent event) override {
    if (event.kind == StoreEvent::Kind::kInitBegin) {
      ahead = Eventually([this] { return kube_.requests().size() >= 2; });
    }
  }
  std::atomic<bool> ahead{false};

 private:
  FakeKube& kube_;
};

TEST_CASE("the next page is on its way while one is read") {
  FakeKube kube;
  for (int i = 0; i < 4; ++i) kube.Put("p" + std::to_string(i));
  auto client = Client::Create({.server = kube.server.url()});
  REQUIRE(client.ok());
  SlowSink sink(kube);
  Informer informer(**client, sink, {.resource = Pods(), .page_size = 2});
  REQUIRE(informer.WaitSynced(20s));
  CHECK(sink.ahead);
  const auto requests = kube.requests();
  REQUIRE(requests.size() >= 2);
  CHECK_FALSE(requests[1].query("continue").empty());
}

TEST_CASE("a bookmark is where the next watch begins") {
  FakeKube kube;
  kube.Put("a");
  Rig rig(kube);
  REQUIRE(rig.informer->WaitSynced(10s));
  REQUIRE(Eventually([&] { return rig.informer->counters().watches == 1; }));
  kube.Bookmark();
  kube.Put("b");
  REQUIRE(Eventually([&] { return rig.store.size() == 2; }));
  kube.Bookmark();
  REQUIRE(Eventually([&] { return kube.Sent(); }));
  kube.Compact();
  kube.EndWatches();
  REQUIRE(Eventually([&] { return rig.informer->counters().watches >= 2; }));
  kube.Put("c");
  CHECK(Eventually([&] { return rig.store.size() == 3; }));
  CHECK(rig.informer->counters().lists == 1);  // The bookmark was newer than the forgotten history.
  CHECK(rig.informer->counters().gone == 0);
}

TEST_CASE("after each fault of a watch the store catches up") {
  using Fault = FakeKube::Fault;
  const auto [fault, relists] = GENERATE(table<Fault, bool>({{Fault::kGoneStatus, true},
                                                             {Fault::kGoneEvent, true},
                                                             {Fault::kGarbage, false},
                                                             {Fault::kTruncated, false},
                                                             {Fault::kDropped, false},
                                                             {Fault::kSilence, false},
                                                             {Fault::kThrottled, false}}));
  CAPTURE(static_cast<int>(fault));
  FakeKube kube;
  kube.Put("a");
  kube.Put("b");
  kube.Inject(fault);
  Rig rig(kube, 3s, 1);
  REQUIRE(rig.informer->WaitSynced(10s));
  kube.Put("c");
  kube.Remove("a");
  CHECK(Eventually([&] { return rig.State() == kube.State(); }, 20s));
  CHECK(kube.faults_left() == 0);
  CHECK(rig.informer->counters().lists == (relists ? 2u : 1u));
  CHECK(rig.informer->counters().watches >= (relists ? 1u : 2u));
}

TEST_CASE("410 and garbage in the middle of paging end in a whole list") {
  FakeKube kube;
  for (int i = 0; i < 30; ++i) kube.Put("p" + std::to_string(i));
  kube.Inject(FakeKube::Fault::kGonePage);
  kube.Inject(FakeKube::Fault::kGarbagePage);
  Rig rig(kube, 10s, 10);
  REQUIRE(rig.informer->WaitSynced(10s));
  CHECK(rig.State() == kube.State());
  CHECK(rig.informer->counters().gone == 1);
  CHECK(rig.informer->counters().garbage == 1);
  CHECK(kube.faults_left() == 0);
}

TEST_CASE("an API server that goes away keeps the store readable, and is found again") {
  FakeKube kube;
  kube.Put("a");
  Rig rig(kube);
  REQUIRE(rig.informer->WaitSynced(10s));
  REQUIRE(Eventually([&] { return rig.informer->counters().watches >= 1; }));
  kube.server.Stop();
  kube.Put("b");
  REQUIRE(Eventually([&] { return rig.informer->counters().broken >= 3; }));
  CHECK(rig.store.size() == 1);
  CHECK(rig.informer->last_error().find("watch pods") != std::string::npos);
  kube.server.Restart();
  CHECK(Eventually([&] { return rig.State() == kube.State(); }));
  CHECK(rig.informer->counters().lists == 1);
}

TEST_CASE("an informer without a server stops at once") {
  FakeKube kube;
  kube.server.Stop();
  Rig rig(kube);
  CHECK_FALSE(rig.informer->WaitSynced(100ms));
  const auto began = std::chrono::steady_clock::now();
  rig.informer.reset();
  CHECK(std::chrono::steady_clock::now() - began < 3s);
}

TEST_CASE("an informer stops at once while its watch is silent") {
  FakeKube kube;
  kube.Inject(FakeKube::Fault::kSilence);
  Rig rig(kube, 60s);
  REQUIRE(rig.informer->WaitSynced(10s));
  REQUIRE(Eventually([&] { return kube.faults_left() == 0; }));
  std::this_thread::sleep_for(50ms);
  const auto began = std::chrono::steady_clock::now();
  rig.informer.reset();
  CHECK(std::chrono::steady_clock::now() - began < 30s);
}

TEST_CASE("an informer of one namespace asks for that namespace") {
  FakeKube kube("/api/v1/namespaces/default/pods");
  kube.Put("a");
  Rig rig(kube, 10s, 250, "default");
  REQUIRE(rig.informer->WaitSynced(10s));
  CHECK(rig.store.size() == 1);
}

TEST_CASE("under random changes and faults the store ends up as the server is") {
  const auto seed = GENERATE(1u, 2u, 3u);
  std::mt19937 random(seed);
  FakeKube kube;
  Rig rig(kube, 300ms, 3);
  for (int step = 0; step < 150; ++step) {
    const std::string name = "p" + std::to_string(random() % 15);
    switch (random() % 8) {
      case 0:
        kube.Remove(name);
        break;
      case 1:
        kube.Inject(static_cast<FakeKube::Fault>(random() % 9));
        kube.EndWatches();
        break;
      case 2:
        kube.Bookmark();
        break;
      case 3:
        if (random() % 4 == 0) kube.Compact();
        break;
      case 4:
        if (random() % 4 == 0) {
          kube.server.Stop();
          kube.server.Restart();
        }
        break;
      default:
        kube.Put(name);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(random() % 8));
  }
  CHECK(Eventually([&] { return rig.State() == kube.State() && rig.informer->synced(); }, 20s));
}

}  // namespace
}  // namespace rouse::kube
