#include "operator/kube/leader.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cstdlib>
#include <thread>
#include <vector>

#include "common/tests/eventually.h"
#include "operator/kube/events.h"
#include "operator/tests/fake_api.h"

namespace rouse::kube {
namespace {

using namespace std::chrono_literals;
using test::Eventually;

const ObjectName kLease{"rouse-system", "rouse-operator"};
// Long enough that a busy machine does not cost the leadership by itself.
const LeaseTiming kFast{.duration = 4s, .renew_deadline = 2500ms, .retry = 50ms};

struct Candidate {
  Candidate(Api& api, const std::string& name, const LeaseTiming& timing = kFast) {
    auto made = LeaderElector::Start(api, {.lease = kLease,
                                           .identity = name,
                                           .address = "http://" + name + ":7480",
                                           .timing = timing,
                                           .on_elected = [this] { ++elected; },
                                           .on_lost =
                                               [this](const std::string& why) {
                                                 std::lock_guard lock(mutex);
                                                 lost = why;
                                               }});
    REQUIRE(made.ok());
    elector = *std::move(made);
  }
  std::string why() {
    std::lock_guard lock(mutex);
    return lost;
  }
  std::mutex mutex;
  std::string lost;
  std::atomic<int> elected{0};
  std::unique_ptr<LeaderElector> elector;
};

std::string Holder(FakeApi& api) {
  const auto leases = api.Objects(Leases());
  return leases.empty() ? "" : DecodeLease(leases[0]).holder;
}

TEST_CASE("of two, one leads; when it stops in order the other follows at once") {
  FakeApi api;
  auto a = std::make_unique<Candidate>(api, "a");
  REQUIRE(Eventually([&] { return a->elector->leading(); }));
  Candidate b(api, "b");
  std::this_thread::sleep_for(300ms);
  CHECK(a->elector->leading());
  CHECK_FALSE(b.elector->leading());
  CHECK(b.elector->holder() == "a");
  CHECK(b.elector->holder_address() == "http://a:7480");
  CHECK(a->elector->holder_address() == "http://a:7480");
  CHECK(a->elected == 1);

  a->elector.reset();  // Releases.
  CHECK(a->why().empty());
  const auto began = std::chrono::steady_clock::now();
  REQUIRE(Eventually([&] { return b.elector->leading(); }));
  CHECK(std::chrono::steady_clock::now() - began < kFast.duration);  // Not waited out.
  const Json lease = api.Objects(Leases())[0];
  CHECK(lease["spec"]["holderIdentity"] == "b");
  CHECK(lease["metadata"]["annotations"][kHolderAddress] == "http://b:7480");
  CHECK(b.elector->holder_address() == "http://b:7480");
  CHECK(lease["spec"]["leaseTransitions"] == 1);
  CHECK(lease["spec"]["leaseDurationSeconds"] == 4);
}

TEST_CASE("a leader that cannot renew stops acting in time and says why") {
  FakeApi api;
  Candidate a(api, "a");
  REQUIRE(Eventually([&] { return a.elector->leading(); }));
  api.SetHook([](const std::string&, const std::string&) { return Unavailable("server down"); });
  REQUIRE(Eventually([&] { return !a.why().empty(); }));
  CHECK_FALSE(a.elector->leading());
  CHECK(a.why().find("server down") != std::string::npos);
  CHECK(Holder(api) == "a");
}

TEST_CASE("leading turns false in time even while a call hangs") {
  FakeApi api;
  Candidate a(api, "a");
  REQUIRE(Eventually([&] { return a.elector->leading(); }));
  std::atomic<bool> hanging{true};
  api.SetHook([&hanging](const std::string&, const std::string&) {
    while (hanging) std::this_thread::sleep_for(1ms);
    return Status();
  });
  std::this_thread::sleep_for(kFast.renew_deadline + 100ms);
  CHECK_FALSE(a.elector->leading());
  CHECK(a.why().empty());  // The thread still hangs, and yet nobody acts.
  hanging = false;
  CHECK(Eventually([&] { return !a.why().empty() || a.elector->leading(); }));
}

// So seldom that what happens at once was asked for.
const LeaseTiming kSeldom{.duration = 60s, .renew_deadline = 50s, .retry = 40s};

TEST_CASE("a confirmation renews at once, and those who ask together share it") {
  FakeApi api;
  Candidate a(api, "a", kSeldom);
  REQUIRE(Eventually([&] { return a.elector->leading(); }));
  const auto updates = [&] {
    const auto calls = api.calls();
    return std::count_if(calls.begin(), calls.end(),
                         [](const std::string& call) { return call.starts_with("update "); });
  };
  const auto before = updates();
  const auto began = std::chrono::steady_clock::now();
  CHECK(a.elector->Confirm(0ms).ok());
  CHECK(updates() == before + 1);
  api.SetHook([](const std::string&, const std::string&) {
    std::this_thread::sleep_for(50ms);
    return Status();
  });
  {
    std::vector<std::jthread> together;
    for (int i = 0; i < 20; ++i) {
      together.emplace_back([&] {
        if (!a.elector->Confirm(0ms).ok()) std::abort();
      });
    }
  }
  CHECK(updates() > before + 1);
  CHECK(updates() < before + 1 + 20);
  CHECK(std::chrono::steady_clock::now() - began < kSeldom.retry);
}

TEST_CASE("a renewal that is young enough confirms; a failed one since then does not") {
  FakeApi api;
  Candidate a(api, "a", kSeldom);
  REQUIRE(Eventually([&] { return a.elector->leading(); }));
  const std::size_t before = api.calls().size();
  CHECK(a.elector->Confirm(10s).ok());
  CHECK(api.calls().size() == before);
  std::this_thread::sleep_for(20ms);
  CHECK(a.elector->Confirm(10ms).ok());
  CHECK(api.calls().size() == before + 1);
  api.SetHook([](const std::string&, const std::string&) { return Unavailable("server down"); });
  CHECK_FALSE(a.elector->Confirm(0ms).ok());
  CHECK_FALSE(a.elector->Confirm(10s).ok());
}

TEST_CASE("a leader that cannot write is not confirmed, and is later") {
  FakeApi api;
  Candidate a(api, "a", kSeldom);
  REQUIRE(Eventually([&] { return a.elector->leading(); }));
  api.SetHook([](const std::string&, const std::string&) { return Unavailable("server down"); });
  CHECK(a.elector->Confirm(0ms).message().find("server down") != std::string::npos);
  CHECK(a.elector->leading());  // Its time is not over.
  api.SetHook({});
  CHECK(a.elector->Confirm(0ms).ok());
}

TEST_CASE("whoever only believes to lead is told by the confirmation") {
  FakeApi api;
  Candidate a(api, "a", kSeldom);
  REQUIRE(Eventually([&] { return a.elector->leading(); }));
  Json lease = api.Objects(Leases())[0];
  lease["spec"]["holderIdentity"] = "thief";
  api.Put(Leases(), lease);
  CHECK(a.elector->leading());
  CHECK_FALSE(a.elector->Confirm(0ms).ok());
  // The lost write is followed by a reading, which says who leads now.
  CHECK_FALSE(a.elector->Confirm(0ms).ok());
  CHECK_FALSE(a.elector->leading());
  CHECK(a.why().find("thief") != std::string::npos);
  CHECK_FALSE(a.elector->Confirm(0ms).ok());  // There is nobody to do it any more.
}

TEST_CASE("one that waits to lead does not confirm that it leads") {
  FakeApi api;
  Candidate a(api, "a", kSeldom);
  REQUIRE(Eventually([&] { return a.elector->leading(); }));
  Candidate b(api, "b", kSeldom);
  CHECK_FALSE(b.elector->Confirm(0ms).ok());
  CHECK(Holder(api) == "a");
}

TEST_CASE("a leader whose lease was taken loses at the next write") {
  FakeApi api;
  Candidate a(api, "a");
  REQUIRE(Eventually([&] { return a.elector->leading(); }));
  Json lease = api.Objects(Leases())[0];
  lease["spec"]["holderIdentity"] = "thief";
  api.Put(Leases(), lease);
  REQUIRE(Eventually([&] { return !a.why().empty(); }));
  CHECK(a.why().find("thief") != std::string::npos);
  CHECK_FALSE(a.elector->leading());
}

TEST_CASE("a lost answer and a deleted lease do not cost the leadership") {
  FakeApi api;
  Candidate a(api, "a");
  REQUIRE(Eventually([&] { return a.elector->leading(); }));
  api.LoseAnswer("update");
  std::this_thread::sleep_for(300ms);
  CHECK(a.elector->leading());
  api.Erase(Leases(), kLease);
  CHECK(Eventually([&] { return Holder(api) == "a"; }));
  CHECK(a.elector->leading());
  CHECK(a.why().empty());
}

TEST_CASE("a dead leader's lease is taken after its duration, seen by our own clock") {
  FakeApi api;
  api.Put(Leases(), {{"metadata", {{"namespace", kLease.ns}, {"name", kLease.name}}},
                     {"spec",
                      {{"holderIdentity", "dead"},
                       {"leaseDurationSeconds", 1},
                       {"renewTime", "2099-01-01T00:00:00.000000Z"}}}});
  const auto began = std::chrono::steady_clock::now();
  Candidate b(api, "b");
  REQUIRE(Eventually([&] { return b.elector->leading(); }));
  CHECK(std::chrono::steady_clock::now() - began >= 1s);
}

TEST_CASE("while the server is down nobody is elected, and the elector stops at once") {
  FakeApi api;
  api.SetHook([](const std::string&, const std::string&) { return Unavailable("server down"); });
  Candidate a(api, "a");
  std::this_thread::sleep_for(150ms);
  CHECK_FALSE(a.elector->leading());
  const auto began = std::chrono::steady_clock::now();
  a.elector.reset();
  CHECK(std::chrono::steady_clock::now() - began < 1s);
  CHECK(api.Objects(Leases()).empty());
}

TEST_CASE("identities are unique, and nonsense options are refused") {
  CHECK(UniqueIdentity("pod") != UniqueIdentity("pod"));
  FakeApi api;
  CHECK_FALSE(LeaderElector::Start(api, {.lease = kLease, .identity = ""}).ok());
  CHECK_FALSE(LeaderElector::Start(api, {.lease = {"", "x"}, .identity = "a"}).ok());
  CHECK_FALSE(
      LeaderElector::Start(api, {.lease = kLease, .identity = "a", .timing = {.retry = 1h}}).ok());
}

Event About(const std::string& note) {
  return {.regarding = ReferenceTo(Pods(), {"default", "demo-1"}, "u1"),
          .reason = "PeerStart",
          .action = "CreatePod",
          .note = note};
}

TEST_CASE("events are written, repetitions counted at the latest when the recorder stops") {
  FakeApi api;
  {
    EventRecorder recorder(api, {.instance = "op"});
    for (int i = 0; i < 5; ++i) recorder.Emit(About("same"));
    recorder.Emit(About("other"));
    CHECK(Eventually([&] { return api.Objects(Events()).size() == 2; }));
  }
  std::vector<int> counts;
  for (const Json& event : api.Objects(Events())) {
    counts.push_back(event.contains("series") ? event["series"]["count"].get<int>() : 1);
  }
  std::sort(counts.begin(), counts.end());
  CHECK(counts == std::vector{1, 5});
}

TEST_CASE("a series is written while the recorder runs, too") {
  FakeApi api;
  EventRecorder recorder(api, {.instance = "op", .series_every = 50ms});
  recorder.Emit(About("same"));
  recorder.Emit(About("same"));
  CHECK(Eventually([&] {
    const auto events = api.Objects(Events());
    return events.size() == 1 && events[0].contains("series") && events[0]["series"]["count"] == 2;
  }));
}

TEST_CASE("emitting never blocks: a full queue loses events and counts them") {
  FakeApi api;
  std::atomic<bool> hanging{true};
  api.SetHook([&hanging](const std::string&, const std::string&) {
    while (hanging) std::this_thread::sleep_for(1ms);
    return Status();
  });
  EventRecorder recorder(api, {.instance = "op", .queue_limit = 10});
  const auto began = std::chrono::steady_clock::now();
  for (int i = 0; i < 1000; ++i) recorder.Emit(About(std::to_string(i)));
  CHECK(std::chrono::steady_clock::now() - began < 5s);  // The writer hangs for ever.
  CHECK(recorder.dropped() >= 980);
  hanging = false;
}

TEST_CASE("an event outlives a short outage, and a created one whose answer was lost counts once") {
  FakeApi api;
  std::atomic<int> failures{2};
  api.SetHook([&failures](const std::string&, const std::string&) {
    return failures-- > 0 ? Unavailable("down") : Status();
  });
  EventRecorder recorder(api, {.instance = "op"});
  recorder.Emit(About("a"));
  CHECK(Eventually([&] { return recorder.written() == 1; }));
  api.LoseAnswer("create");
  recorder.Emit(About("b"));
  CHECK(Eventually([&] { return recorder.written() == 2; }));
  CHECK(api.Objects(Events()).size() == 2);
  CHECK(recorder.dropped() == 0);
}

TEST_CASE("a refused event is dropped and counted, not tried for ever") {
  FakeApi api;
  api.SetHook([](const std::string&, const std::string&) {
    return FailedPrecondition("events is forbidden");
  });
  EventRecorder recorder(api, {.instance = "op"});
  recorder.Emit(About("a"));
  CHECK(Eventually([&] { return recorder.dropped() == 1; }));
  CHECK(api.calls().size() == 1);
}

TEST_CASE("a recorder stops soon while the server is down") {
  FakeApi api;
  api.SetHook([](const std::string&, const std::string&) { return Unavailable("down"); });
  const auto began = std::chrono::steady_clock::now();
  {
    EventRecorder recorder(api, {.instance = "op"});
    for (int i = 0; i < 500; ++i) recorder.Emit(About(std::to_string(i)));
  }
  CHECK(std::chrono::steady_clock::now() - began < 3s);
}

}  // namespace
}  // namespace rouse::kube
