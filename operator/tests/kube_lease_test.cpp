#include "operator/kube/lease.h"

#include <catch2/catch.hpp>
#include <random>

namespace rouse::kube {
namespace {

using namespace std::chrono_literals;
using Time = LeaseView::Time;

const Time kLeaseNow = Time() + 1000h;
const LeaseTiming kTiming{};

LeaseRecord Held(const std::string& by, const std::string& renewed = "t1") {
  return {.holder = by, .duration = 15s, .renew_time = renewed, .resource_version = renewed};
}

TEST_CASE("no lease, a released lease and our own old lease are taken at once") {
  LeaseView view;
  CHECK(Decide(view, "me", kTiming, kLeaseNow) == LeaseStep::kAcquire);
  view.Observe(Held(""), kLeaseNow);
  CHECK(Decide(view, "me", kTiming, kLeaseNow) == LeaseStep::kAcquire);
  view.Observe(Held("me"), kLeaseNow);
  CHECK(Decide(view, "me", kTiming, kLeaseNow) == LeaseStep::kAcquire);
}

TEST_CASE("another's lease is waited for until it was seen unchanged for its whole duration") {
  LeaseView view;
  view.Observe(Held("other"), kLeaseNow);
  CHECK(Decide(view, "me", kTiming, kLeaseNow + 14'999ms) == LeaseStep::kWait);
  CHECK(Decide(view, "me", kTiming, kLeaseNow + 15s) == LeaseStep::kAcquire);
  view.Observe(Held("other"), kLeaseNow + 14s);  // The same reading again changes nothing.
  CHECK(Decide(view, "me", kTiming, kLeaseNow + 15s) == LeaseStep::kAcquire);
  view.Observe(Held("other", "t2"), kLeaseNow + 14s);
  CHECK(Decide(view, "me", kTiming, kLeaseNow + 28s) == LeaseStep::kWait);
  CHECK(Decide(view, "me", kTiming, kLeaseNow + 29s) == LeaseStep::kAcquire);
}

TEST_CASE("the other's duration counts, not ours, and its clock not at all") {
  LeaseView view;
  LeaseRecord record = Held("other", "1970-01-01T00:00:00.000000Z");
  record.duration = 60s;
  view.Observe(record, kLeaseNow);
  CHECK(Decide(view, "me", kTiming, kLeaseNow + 59s) == LeaseStep::kWait);
  CHECK(Decide(view, "me", kTiming, kLeaseNow + 60s) == LeaseStep::kAcquire);
}

TEST_CASE("a leader renews until its deadline, and is lost when it passes or another holds") {
  LeaseView view;
  view.leading = true;
  view.renewed_at = kLeaseNow;
  view.Observe(Held("me"), kLeaseNow);
  CHECK(Decide(view, "me", kTiming, kLeaseNow + 2s) == LeaseStep::kRenew);
  CHECK(Decide(view, "me", kTiming, kLeaseNow + 9'999ms) == LeaseStep::kRenew);
  CHECK(Decide(view, "me", kTiming, kLeaseNow + 10s) == LeaseStep::kLost);
  view.Observe(Held("other"), kLeaseNow + 2s);
  CHECK(Decide(view, "me", kTiming, kLeaseNow + 2s) == LeaseStep::kLost);
}

TEST_CASE("a lease that was deleted under its leader is written again") {
  LeaseView view;
  view.leading = true;
  view.renewed_at = kLeaseNow;
  view.Observe(std::nullopt, kLeaseNow);
  CHECK(Decide(view, "me", kTiming, kLeaseNow + 1s) == LeaseStep::kRenew);
}

TEST_CASE("timings that cannot work are refused with the numbers") {
  CHECK(Check(kTiming).ok());
  CHECK_FALSE(Check({.duration = 10s, .renew_deadline = 10s, .retry = 2s}).ok());
  CHECK_FALSE(Check({.duration = 15s, .renew_deadline = 2s, .retry = 2s}).ok());
  CHECK_FALSE(Check({.duration = 15s, .renew_deadline = 10s, .retry = 0s}).ok());
  CHECK_FALSE(Check({.duration = 15'500ms, .renew_deadline = 10s, .retry = 2s}).ok());
  CHECK(Check({.duration = 5s, .renew_deadline = 9s, .retry = 2s}).message().find("9000") !=
        std::string::npos);
}

TEST_CASE("a lease with nonsense in it is read with defaults") {
  CHECK(DecodeLease(nullptr).holder.empty());
  CHECK(DecodeLease({{"spec", 5}}).duration == 15s);
  const LeaseRecord record = DecodeLease(
      {{"metadata", {{"resourceVersion", "9"}}},
       {"spec", {{"holderIdentity", 3}, {"leaseDurationSeconds", -4}, {"leaseTransitions", "x"}}}});
  CHECK(record.holder.empty());
  CHECK(record.duration == 15s);
  CHECK(record.transitions == 0);
  CHECK(record.resource_version == "9");
}

// Several candidates against one lease, each with a clock of its own rate of trouble: calls fail,
// hang and lose their answers.
TEST_CASE("never do two act at the same time, and one acts again when there is peace") {
  for (unsigned seed = 1; seed <= 200; ++seed) {
    std::mt19937 random(seed);
    struct Candidate {
      std::string name;
      LeaseView view;
      Time next;
      bool dead = false;
    };
    std::vector<Candidate> all(3);
    for (std::size_t i = 0; i < all.size(); ++i) {
      all[i].name = "c" + std::to_string(i);
      all[i].next = kLeaseNow + std::chrono::milliseconds(random() % 2000);
    }
    std::optional<LeaseRecord> lease;
    int version = 0;
    const auto leads = [](const Candidate& c, Time now) {
      return c.view.leading && now < c.view.renewed_at + kTiming.renew_deadline;
    };
    bool anyone = false;
    for (Time now = kLeaseNow; now < kLeaseNow + 300s; now += 100ms) {
      const bool peace = now >= kLeaseNow + 200s;
      for (Candidate& c : all) {
        if (now < c.next) continue;
        c.next = now + kTiming.retry;
        if (!peace && random() % 4 == 0) c.next += std::chrono::milliseconds(random() % 20'000);
        const bool down = !peace && random() % 4 == 0;
        if (!down) c.view.Observe(lease, now);
        switch (Decide(c.view, c.name, kTiming, now)) {
          case LeaseStep::kLost:
            c.view.leading = false;
            break;
          case LeaseStep::kWait:
            break;
          case LeaseStep::kAcquire:
          case LeaseStep::kRenew:
            // Conditional on the version, as the API server does it.
            if (down || lease != c.view.record) break;
            lease = {.holder = c.name,
                     .duration = kTiming.duration,
                     .renew_time = std::to_string(now.time_since_epoch().count()),
                     .resource_version = std::to_string(++version)};
            if (!peace && random() % 5 == 0) break;  // Written, but the answer is lost.
            c.view.Observe(lease, now);
            c.view.leading = true;
            c.view.renewed_at = now;
        }
      }
      int leaders = 0;
      for (const Candidate& c : all) leaders += leads(c, now);
      REQUIRE(leaders <= 1);
      anyone = leaders == 1;
    }
    CHECK(anyone);
  }
}

}  // namespace
}  // namespace rouse::kube
