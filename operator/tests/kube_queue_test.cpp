#include <atomic>
#include <catch2/catch.hpp>
#include <map>
#include <random>
#include <thread>
#include <vector>

#include "operator/kube/work_queue.h"

namespace rouse::kube {
namespace {

using namespace std::chrono_literals;

const SteadyTime kNow{};

TEST_CASE("a key added many times is handed out once") {
  QueueState queue;
  for (int i = 0; i < 5; ++i) queue.Add("a");
  queue.Add("b");
  CHECK(queue.queued() == 2);
  CHECK(queue.TryGet(kNow) == "a");
  CHECK(queue.TryGet(kNow) == "b");
  CHECK(queue.TryGet(kNow) == std::nullopt);
}

TEST_CASE("a key that is worked on is not handed to a second worker, but comes back after Done") {
  QueueState queue;
  queue.Add("a");
  REQUIRE(queue.TryGet(kNow) == "a");
  queue.Add("a");
  queue.Add("a");
  CHECK(queue.TryGet(kNow) == std::nullopt);
  queue.Done("a");
  CHECK(queue.TryGet(kNow) == "a");
  queue.Done("a");
  CHECK(queue.TryGet(kNow) == std::nullopt);
}

TEST_CASE("a delayed key comes when due, and the earliest time wins") {
  QueueState queue;
  queue.AddAfter("a", 100ms, kNow);
  queue.AddAfter("a", 50ms, kNow);
  queue.AddAfter("a", 80ms, kNow);
  CHECK(queue.delayed() == 1);
  CHECK(queue.NextDue() == kNow + 50ms);
  CHECK(queue.TryGet(kNow + 49ms) == std::nullopt);
  CHECK(queue.TryGet(kNow + 50ms) == "a");
  queue.Done("a");
  CHECK(queue.TryGet(kNow + 200ms) == std::nullopt);
}

TEST_CASE("an immediate add makes a delayed one needless") {
  QueueState queue;
  queue.AddAfter("a", 100ms, kNow);
  queue.Add("a");
  CHECK(queue.TryGet(kNow) == "a");
  queue.Done("a");
  CHECK(queue.TryGet(kNow + 1s) == std::nullopt);
  queue.AddAfter("b", 0ms, kNow);
  CHECK(queue.TryGet(kNow) == "b");
}

TEST_CASE("failures stretch the delay up to its bound, and Forget begins anew") {
  QueueState queue({100ms, 1s});
  std::chrono::milliseconds last{0};
  for (int i = 1; i <= 6; ++i) {
    const auto delay = queue.AddRateLimited("a", kNow, 1.0);
    CHECK(delay >= last);
    last = delay;
    CHECK(queue.failures("a") == i);
  }
  CHECK(last == 1s);
  queue.Forget("a");
  CHECK(queue.failures("a") == 0);
  CHECK(queue.AddRateLimited("a", kNow, 0.0) == 50ms);
}

TEST_CASE("backoff doubles, is bounded and jittered between a half and the whole") {
  const BackoffPolicy policy{100ms, 30s};
  CHECK(BackoffDelay(policy, 0, 0.5) == 0ms);
  CHECK(BackoffDelay(policy, 1, 0.0) == 50ms);
  CHECK(BackoffDelay(policy, 1, 1.0) == 100ms);
  CHECK(BackoffDelay(policy, 4, 1.0) == 800ms);
  CHECK(BackoffDelay(policy, 1'000'000, 1.0) == 30s);
  CHECK(BackoffDelay(policy, -3, 1.0) == 0ms);
  CHECK(BackoffDelay(policy, 1, 57.0) == 100ms);
}

TEST_CASE("shutdown hands out what is queued, drops what is delayed and takes nothing new") {
  QueueState queue;
  queue.Add("a");
  queue.Add("b");
  REQUIRE(queue.TryGet(kNow) == "a");
  queue.Add("a");
  queue.AddAfter("c", 1ms, kNow);
  queue.ShutDown();
  queue.Add("d");
  CHECK_FALSE(queue.drained());
  CHECK(queue.TryGet(kNow + 1s) == "b");
  CHECK(queue.TryGet(kNow + 1s) == std::nullopt);
  CHECK_FALSE(queue.drained());  // "a" was changed while it was worked on.
  queue.Done("a");
  CHECK(queue.TryGet(kNow + 1s) == "a");
  queue.Done("a");
  queue.Done("b");
  CHECK(queue.drained());
}

TEST_CASE("random use keeps the rules: nothing lost, nothing invented, no key held by two") {
  for (unsigned seed = 1; seed <= 50; ++seed) {
    std::mt19937 random(seed);
    QueueState queue({1ms, 100ms});
    SteadyTime now = kNow;
    std::set<std::string> held;
    struct Account {
      int adds = 0;
      int runs = 0;
      int last_add = 0;
      int last_run = 0;
    };
    std::map<std::string, Account> accounts;
    int step = 1;
    for (; step < 2000; ++step) {
      const std::string key(1, static_cast<char>('a' + random() % 8));
      const auto what = random() % 6;
      if (what <= 2) {
        if (what == 0) queue.Add(key);
        if (what == 1) queue.AddAfter(key, std::chrono::milliseconds(random() % 50), now);
        if (what == 2) queue.AddRateLimited(key, now, 0.5);
        ++accounts[key].adds;
        accounts[key].last_add = step;
      } else if (what == 3) {
        now += std::chrono::milliseconds(random() % 20);
      } else if (what == 4) {
        if (auto got = queue.TryGet(now)) {
          REQUIRE(held.insert(*got).second);
          ++accounts[*got].runs;
          accounts[*got].last_run = step;
        }
      } else if (!held.empty()) {
        queue.Done(*held.begin());
        held.erase(held.begin());
      }
    }
    for (const std::string& key : held) queue.Done(key);
    now += 1h;
    std::set<std::string> rest;
    while (auto got = queue.TryGet(now)) {
      REQUIRE(rest.insert(*got).second);
      ++accounts[*got].runs;
      accounts[*got].last_run = step;
      queue.Done(*got);
    }
    for (const auto& [key, account] : accounts) {
      CHECK(account.last_run >= account.last_add);
      CHECK(account.runs <= account.adds);
    }
    CHECK(queue.queued() == 0);
    CHECK(queue.delayed() == 0);
    CHECK(queue.idle());
  }
}

TEST_CASE("workers share a queue: one at a time a key, every add is followed by a run") {
  WorkQueue queue({1ms, 10ms});
  constexpr int kKeys = 10;
  std::array<std::atomic<int>, kKeys> holders{};
  std::array<std::atomic<int>, kKeys> seen{};
  std::array<std::atomic<int>, kKeys> version{};
  std::atomic<bool> overlap{false};
  std::vector<std::thread> workers;
  for (int i = 0; i < 4; ++i) {
    workers.emplace_back([&] {
      while (auto key = queue.Get()) {
        const auto index = static_cast<std::size_t>(std::stoi(*key));
        if (++holders[index] != 1) overlap = true;
        const int now = version[index];
        if (now % 7 == 3) queue.AddAfter(*key, 1ms);
        if (now % 7 == 5) queue.AddRateLimited(*key);
        seen[index] = now;
        --holders[index];
        queue.Done(*key);
      }
    });
  }
  std::mt19937 random(3);
  for (int i = 0; i < 5000; ++i) {
    const auto index = static_cast<std::size_t>(random() % kKeys);
    ++version[index];
    queue.Add(std::to_string(index));
  }
  queue.ShutDown();
  for (std::thread& worker : workers) worker.join();
  CHECK_FALSE(overlap);
  for (std::size_t i = 0; i < kKeys; ++i) CHECK(seen[i] == version[i]);
}

TEST_CASE("a waiting worker wakes for an earlier due time than the one it waits for") {
  WorkQueue queue;
  queue.AddAfter("late", 1h);
  std::thread adder([&queue] {
    std::this_thread::sleep_for(20ms);
    queue.AddAfter("soon", 10ms);
  });
  const auto began = std::chrono::steady_clock::now();
  CHECK(queue.Get() == "soon");
  CHECK(std::chrono::steady_clock::now() - began < 10s);
  adder.join();
}

TEST_CASE("the clock of a queue can be given") {
  std::atomic<std::int64_t> seconds{0};
  WorkQueue queue({}, [&seconds] { return SteadyTime(std::chrono::seconds(seconds.load())); });
  queue.AddAfter("a", 1h);
  std::thread mover([&] {
    seconds = 3600;
    queue.Wake();
  });
  CHECK(queue.Get() == "a");
  mover.join();
}

TEST_CASE("how long keys wait and are held is told, and what is held now") {
  std::int64_t ms = 0;
  std::vector<double> waited, worked;
  WorkQueue queue({}, [&] { return SteadyTime(std::chrono::milliseconds(ms)); },
                  {.on_waited = [&](double seconds) { waited.push_back(seconds); },
                   .on_worked = [&](double seconds) { worked.push_back(seconds); }});
  queue.Add("a");
  queue.AddAfter("b", 1500ms);
  ms = 500;
  queue.Add("a");  // It is in the queue already, and has waited since the first time.
  ms = 1000;
  CHECK(queue.Get() == "a");
  ms = 2000;
  queue.Add("a");  // It comes back when it is done.
  CHECK(queue.Get() == "b");
  CHECK(waited == std::vector<double>{1.0, 0.0});
  ms = 2500;
  const UnfinishedWork held = queue.Unfinished();
  CHECK(held.keys == 2);
  CHECK(held.seconds == Approx(2.0));
  CHECK(held.longest_seconds == Approx(1.5));
  queue.Done("a");
  queue.Done("b");
  CHECK(worked == std::vector<double>{1.5, 0.5});
  CHECK(queue.Get() == "a");
  CHECK(waited.back() == Approx(0.5));
  CHECK(queue.Unfinished().keys == 1);
}

TEST_CASE("shutdown wakes every waiting worker") {
  WorkQueue queue;
  queue.AddAfter("never", 1h);
  std::vector<std::thread> workers;
  std::atomic<int> ended{0};
  for (int i = 0; i < 3; ++i) {
    workers.emplace_back([&] {
      if (queue.Get() == std::nullopt) ++ended;
    });
  }
  std::this_thread::sleep_for(20ms);
  queue.ShutDown();
  for (std::thread& worker : workers) worker.join();
  CHECK(ended == 3);
}

}  // namespace
}  // namespace rouse::kube
