#include "operator/actuate/loads.h"
#include "common/tests/eventually.h"

#include <catch2/catch.hpp>
#include <mutex>
#include <thread>

#include "common/tests/tls_authority.h"
#include "operator/actuate/load_relay.h"

using namespace rouse;
using namespace rouse::actuate;
using namespace std::chrono_literals;

namespace {

const plan::LoadTime kThen = plan::LoadTime(1h);

plan::ToldLoad Say(std::uint64_t running, plan::LoadTime at) {
  return {.load = EngineLoad{.running = running}, .at = at, .kept = 30s};
}

PodLoad Of(const std::string& pod, std::uint64_t running) {
  return {.ns = "ns", .pod = pod, .uid = "u-" + pod, .load = EngineLoad{.running = running}};
}

/// The leader's end.
class Leader {
 public:
  // All operators have the same.
  static inline const auto credentials = tls::testing::Authority().StoreFor(tls::Operator());

  Leader() {
    auto server = http::Server::Listen("127.0.0.1", 0,
                                       [this](const http::Request& request) {
                                         if (request.peer != tls::Operator())
                                           return http::Response{.status = 403};
                                         const auto body = json::Parse(request.body, "loads");
                                         const auto loads =
                                             body.ok() ? PodLoadsFromJson(*body) : body.status();
                                         std::unique_lock lock(mutex_);
                                         changed_.wait(lock, [this] { return !blocked_; });
                                         if (request.target != "/v1/operators/loads" || !loads.ok())
                                           return http::Response{.status = 400};
                                         ++messages_;
                                         for (const PodLoad& load : *loads) got_[load.pod] = load;
                                         return http::JsonResponse("{}");
                                       },
                                       {.tls = http::ServerTls{.credentials = credentials}});
    REQUIRE(server.ok());
    server_ = *std::move(server);
  }
  std::string url() const { return "https://127.0.0.1:" + std::to_string(server_->port()); }
  void Block(bool blocked) {
    std::lock_guard lock(mutex_);
    blocked_ = blocked;
    changed_.notify_all();
  }
  int messages() {
    std::lock_guard lock(mutex_);
    return messages_;
  }
  bool Gets(const PodLoad& load) {
    return test::Eventually(
        [&] {
          std::lock_guard lock(mutex_);
          const auto it = got_.find(load.pod);
          return it != got_.end() && it->second == load;
        },
        10s);
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool blocked_ = false;
  int messages_ = 0;
  std::map<std::string, PodLoad> got_;
  std::unique_ptr<http::Server> server_;
};

}  // namespace

TEST_CASE("the last load of each pod is kept") {
  Loads loads;
  CHECK_FALSE(loads.Get("a"));
  loads.Put("a", Say(1, kThen));
  loads.Put("a", Say(2, kThen + 1s));
  CHECK(loads.Get("a") == Say(2, kThen + 1s));
}

TEST_CASE("loads of pods that went are dropped in time") {
  Loads loads;
  for (int i = 0; i < 10'000; ++i) {
    loads.Put("pod-" + std::to_string(i), Say(1, kThen + std::chrono::seconds(i)));
  }
  CHECK(loads.size() <= 128);
  CHECK(loads.Get("pod-9999"));
  CHECK(loads.Get("pod-9970"));  // Not too old yet.
}

TEST_CASE("loads between operators read back as they were written, and are decoded strictly") {
  const std::vector<PodLoad> loads = {Of("a", 3), {.ns = "n", .pod = "b", .uid = "u", .load = {}}};
  REQUIRE(PodLoadsFromJson(ToJson(loads)).ok());
  CHECK(*PodLoadsFromJson(ToJson(loads)) == loads);
  json::Json bad = ToJson(loads);
  bad["loads"][1]["load"] = {{"running", 1}, {"waiting", -1}};
  CHECK_THAT(PodLoadsFromJson(bad).status().message(), Catch::StartsWith("loads[1].load.waiting"));
  bad = ToJson(loads);
  bad["loads"][0].erase("podUid");
  CHECK_THAT(PodLoadsFromJson(bad).status().message(), Catch::StartsWith("loads[0].podUid"));
  bad = ToJson(std::vector<PodLoad>(1'025, Of("a", 1)));
  CHECK_THAT(PodLoadsFromJson(bad).status().message(), Catch::StartsWith("loads: has more than"));
  bad = ToJson(loads);
  bad["version"] = 2;
  CHECK(PodLoadsFromJson(bad).status().code() == StatusCode::kFailedPrecondition);
}

TEST_CASE("load is passed on to who leads; of what waits, the last of each pod") {
  Leader leader;
  std::mutex mutex;
  std::string url;
  LoadRelay relay(
      [&] {
        std::lock_guard lock(mutex);
        return url;
      },
      leader.credentials);
  relay.Add(Of("a", 1));  // There is no leader yet.
  std::this_thread::sleep_for(50ms);
  {
    std::lock_guard lock(mutex);
    url = leader.url();
  }
  CHECK(leader.Gets(Of("a", 1)));
  leader.Block(true);
  relay.Add(Of("b", 1));
  std::this_thread::sleep_for(50ms);  // It is under way.
  for (std::uint64_t i = 0; i < 100; ++i) {
    relay.Add(Of("b", i));
    relay.Add(Of("c", i));
  }
  leader.Block(false);
  CHECK(leader.Gets(Of("b", 99)));
  CHECK(leader.Gets(Of("c", 99)));
  CHECK(leader.messages() <= 3);

  // Another leads.
  Leader next;
  {
    std::lock_guard lock(mutex);
    url = next.url();
  }
  relay.Add(Of("b", 5));
  CHECK(next.Gets(Of("b", 5)));
}
