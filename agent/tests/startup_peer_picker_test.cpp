#include <catch2/catch.hpp>

#include "agent/startup/peer_picker.h"

using namespace rouse;
using namespace rouse::agent;
using namespace std::chrono_literals;

namespace {

const Peer kA{.pod = "a", .node = "n", .address = "http://a"};
const Peer kB{.pod = "b", .node = "n", .address = "http://b"};
const PeerPickerLimits kLimits{.deadline = 10s,
                               .refused_deadline = 3s,
                               .first_pause = 200ms,
                               .longest_pause = 5s,
                               .max_failed_transfers = 3};

std::string Say(const PeerPicker::Choice& choice) {
  if (const auto* take = std::get_if<PeerPicker::Take>(&choice)) return take->peer.pod;
  if (const auto* give_up = std::get_if<PeerPicker::GiveUp>(&choice))
    return "give up: " + give_up->reason;
  return "wait";
}

}  // namespace

TEST_CASE("The operator's first peer is asked first, and a failed one after the others") {
  PeerPicker::TimePoint now;
  PeerPicker picker(kLimits, now);
  CHECK(Say(picker.Next({kA, kB}, now)) == "a");
  picker.OnFailed(kA, Unavailable("not there"), false, now);
  CHECK(Say(picker.Next({kA, kB}, now)) == "b");
  CHECK(Say(picker.Next({kA}, now)) == "wait");
  CHECK(Say(picker.Next({kA, kB}, now + 200ms)) == "b");  // No failure yet.
  CHECK(Say(picker.Next({kA}, now + 200ms)) == "a");
}

TEST_CASE("Pauses grow and are bounded") {
  PeerPicker::TimePoint now;
  PeerPickerLimits limits = kLimits;
  limits.deadline = 1h;
  PeerPicker picker(limits, now);
  for (const auto pause : {200ms, 400ms, 800ms, 1600ms, 3200ms, 5000ms, 5000ms}) {
    picker.OnFailed(kA, Unavailable("x"), false, now);
    CHECK(Say(picker.Next({kA}, now + pause - 1ms)) == "wait");
    CHECK(Say(picker.Next({kA}, now + pause)) == "a");
    now += pause;
  }
}

TEST_CASE("A peer that does not fit is never asked again, and all such end the search early") {
  PeerPicker::TimePoint now;
  PeerPicker picker(kLimits, now);
  picker.OnFailed(kA, FailedPrecondition("another launch"), false, now);
  CHECK(Say(picker.Next({kA}, now + 1s)) == "wait");
  CHECK(Say(picker.Next({kA, kB}, now + 2s)) ==
        "b");  // A new one came: the short deadline starts anew.
  picker.OnFailed(kB, InvalidArgument("nonsense"), false, now + 2s);
  CHECK(Say(picker.Next({kA, kB}, now + 3s)) == "wait");
  CHECK(Say(picker.Next({kA, kB}, now + 6s)) ==
        "give up: a (http://a): FailedPrecondition: another launch; b (http://b): InvalidArgument: "
        "nonsense");
}

TEST_CASE("Without a peer the search ends at the deadline, and a transfer starts it anew") {
  PeerPicker::TimePoint now;
  PeerPicker picker(kLimits, now);
  CHECK(Say(picker.Next({}, now + 9s)) == "wait");
  CHECK(Say(picker.Next({}, now + 10s)) ==
        "give up: the operator named no peer that serves the weights within 10 s");
  picker.OnFailed(kA, Unavailable("died"), true, now + 60s);
  CHECK(Say(picker.Next({}, now + 69s)) == "wait");
  CHECK(Say(picker.Next({}, now + 70s)) == "give up: a (http://a): Unavailable: died");
}

TEST_CASE("Transfers that fail again and again come to an end") {
  PeerPicker::TimePoint now;
  PeerPicker picker(kLimits, now);
  for (int i = 0; i < 3; ++i) {
    CHECK(Say(picker.Next({kA}, now)) == "a");
    picker.OnFailed(kA, DataLoss("wrong bytes"), true, now);
    now += 5s;
  }
  CHECK(Say(picker.Next({kA, kB}, now)) ==
        "give up: 3 transfers failed: a (http://a): DataLoss: wrong bytes");
}

TEST_CASE("Transfers that fail while others bring something do not count") {
  PeerPicker::TimePoint now;
  PeerPicker picker(kLimits, now);
  for (int i = 0; i < 20; ++i) {
    picker.OnFailed(kA, Unavailable("died"), true, now);
    now += 9s;
    picker.OnProgress(now);
    CHECK(Say(picker.Next({kA, kB}, now + 9s)) == "b");
  }
  CHECK(Say(picker.Next({}, now + 10s)) == "give up: a (http://a): Unavailable: died");
}

TEST_CASE("Nobody is waited for when nobody may come") {
  PeerPicker::TimePoint now;
  PeerPickerLimits limits = kLimits;
  limits.deadline = 120s;
  PeerPicker picker(limits, now);
  CHECK(Say(picker.Next({}, now)) == "wait");
  now += 60s;
  CHECK(Say(picker.Next({}, now, false)) == "wait");
  CHECK(Say(picker.Next({}, now + 9s, false)) == "wait");
  SECTION("until the time is over") {
    CHECK(Say(picker.Next({}, now + 10s, false)) ==
          "give up: no other instance has the weights or may come to have them");
  }
  SECTION("one that has begun meanwhile is waited for in full") {
    CHECK(Say(picker.Next({}, now + 10s, true)) == "wait");
    CHECK(Say(picker.Next({}, now + 11s, false)) == "wait");
    CHECK(Say(picker.Next({}, now + 20s, false)) == "wait");
    CHECK(Say(picker.Next({}, now + 21s, false)) != "wait");
  }
  SECTION("a peer that is named is asked") {
    CHECK(Say(picker.Next({kA}, now + 10s, false)) == "a");
  }
  SECTION("one that dies in mid-transfer may come back, and is named in the end") {
    picker.OnFailed(kA, Unavailable("died"), true, now + 9s);
    CHECK(Say(picker.Next({}, now + 10s, false)) == "wait");
    CHECK_THAT(Say(picker.Next({}, now + 20s, false)), Catch::Contains("died"));
  }
}
