#include <catch2/catch.hpp>
#include <map>
#include <random>
#include <string>

#include "common/tls/rotation.h"

namespace rouse::tls {
namespace {

using namespace std::chrono_literals;

const TimePoint kStart{std::chrono::seconds(1'800'000'000)};
const RotationPolicy kPolicy{
    .authority_lifetime = 90h, .certificate_lifetime = 1h, .propagation = 5min};

AuthorityTimes Made(TimePoint at) {
  return {.created = at,
          .not_after = at + kPolicy.authority_lifetime,
          .published = at,
          .retire = false};
}

}  // namespace

TEST_CASE("the first authority signs at once, since nobody knows another") {
  const Rotation none = PlanRotation({}, kStart, kPolicy);
  CHECK(none.create);
  CHECK_FALSE(none.signer);
  AuthorityTimes first = Made(kStart);
  first.published.reset();
  const Rotation one = PlanRotation({first}, kStart, kPolicy);
  CHECK_FALSE(one.create);
  CHECK(one.signer == 0u);
  CHECK(one.trusted == std::vector<std::size_t>{0});
}

TEST_CASE(
    "a successor is trusted first, signs later, and its predecessor stays until all is renewed") {
  const AuthorityTimes old = Made(kStart);
  CHECK_FALSE(PlanRotation({old}, kStart + 60h - 1s, kPolicy).create);
  CHECK(PlanRotation({old}, kStart + 60h, kPolicy).create);

  AuthorityTimes next = Made(kStart + 60h);
  next.published.reset();
  const Rotation unknown = PlanRotation({old, next}, kStart + 70h, kPolicy);
  CHECK(unknown.signer == 0u);  // However long ago it was made: it has reached nobody.
  CHECK(unknown.trusted == std::vector<std::size_t>{0, 1});

  next.published = kStart + 61h;
  const auto at = [&](TimePoint now) { return PlanRotation({old, next}, now, kPolicy); };
  CHECK(at(kStart + 61h).signer == 0u);
  CHECK(at(kStart + 61h + 5min - 1s).signer == 0u);
  CHECK(at(kStart + 61h + 5min).signer == 1u);
  const TimePoint last_ends = kStart + 61h + 5min + 1h + kClockSkew;
  CHECK(at(last_ends - 1s).trusted == std::vector<std::size_t>{0, 1});
  CHECK(at(last_ends).trusted == std::vector<std::size_t>{1});
  CHECK(at(last_ends).ended == std::vector<std::size_t>{0});
}

TEST_CASE("who asks for a successor gets one at once, which then waits like any other") {
  AuthorityTimes only = Made(kStart);
  only.retire = true;
  CHECK(PlanRotation({only}, kStart + 1h, kPolicy).create);
  only.retire = false;
  const Rotation after = PlanRotation({only, Made(kStart + 1h)}, kStart + 1h, kPolicy);
  CHECK_FALSE(after.create);
  CHECK(after.signer == 0u);
}

TEST_CASE(
    "what has ended is not trusted, and is forgotten once its successor has signed for long") {
  std::vector<AuthorityTimes> all{Made(kStart), Made(kStart + 1h)};
  const Rotation late = PlanRotation(all, kStart + 900h, kPolicy);
  CHECK(late.create);
  CHECK_FALSE(late.signer);
  CHECK(late.trusted.empty());
  CHECK(late.ended.empty());  // Had the clock been wrong, they would be needed again.
  all.push_back(Made(kStart + 900h));
  CHECK(PlanRotation(all, kStart + 10h, kPolicy).signer == 1u);
  const TimePoint signs = kStart + 900h + 5min;
  for (const TimePoint now : {signs - 5min, signs, signs + 1h + kClockSkew - 1s}) {
    const Rotation soon = PlanRotation(all, now, kPolicy);
    CHECK(soon.signer == 2u);
    CHECK(soon.trusted == std::vector<std::size_t>{2});
    CHECK(soon.ended.empty());
  }
  const Rotation then = PlanRotation(all, signs + 1h + kClockSkew, kPolicy);
  CHECK(then.ended == std::vector<std::size_t>{0, 1});
}

TEST_CASE("an authority that has not begun yet signs nothing and is kept for when it has") {
  AuthorityTimes early = Made(kStart + 48h);
  const Rotation alone = PlanRotation({early}, kStart, kPolicy);
  CHECK_FALSE(alone.create);  // The clock may be behind, and all others hold certificates of it.
  CHECK_FALSE(alone.signer);
  CHECK(alone.trusted == std::vector<std::size_t>{0});
  CHECK(alone.ended.empty());
  // Made by a clock that was ahead, beside one of before.
  const Rotation beside = PlanRotation({Made(kStart - 1h), early}, kStart, kPolicy);
  CHECK_FALSE(beside.create);
  CHECK(beside.signer == 0u);
  CHECK(beside.trusted == std::vector<std::size_t>{0, 1});
  early.retire = true;
  CHECK(PlanRotation({early}, kStart, kPolicy).create);
  // Clocks differ a little at all times.
  CHECK(PlanRotation({Made(kStart + kClockSkew)}, kStart, kPolicy).signer == 0u);
}

TEST_CASE("a policy under which certificates would outlive their authority is refused") {
  CHECK(Check(kPolicy).ok());
  CHECK(Check(RotationPolicy{}).ok());
  CHECK_THAT(
      Check({.authority_lifetime = 3h, .certificate_lifetime = 1h, .propagation = 5min}).message(),
      Catch::Contains("12600 s"));
}

TEST_CASE("certificates end with their authority, and are renewed in time") {
  const Validity authority{.not_before = kStart - 1min, .not_after = kStart + 30min};
  CHECK(ValidityFrom(kStart, 1h, authority) == authority);
  const Validity usual = ValidityFrom(kStart, 1h, {kStart - 10h, kStart + 10h});
  CHECK(usual == Validity{kStart - kClockSkew, kStart + 1h});
  CHECK(RenewAfter(kStart, usual) == 40min);
  CHECK(RenewAfter(kStart + 2h, usual) == 1s);
}

// Plays a leader that now and then is away, or cannot write bundles, over many rotations, with an
// agent that reads its bundle late and one that renews late, and looks for a moment at which a
// certificate that is alive is of an authority that somebody does not know.
TEST_CASE("no certificate that is alive is ever of an authority that somebody does not know") {
  const auto seed = GENERATE(range(1u, 21u));
  std::mt19937 random(seed);
  const auto chance = [&](double p) { return std::bernoulli_distribution(p)(random); };
  std::vector<AuthorityTimes> all;
  std::vector<TimePoint> names;          // of `all`: when each was made
  std::map<TimePoint, TimePoint> alive;  // By authority: when its last certificate ends.
  // What agents know: the bundle as it was up to `propagation` ago.
  std::map<TimePoint, std::vector<TimePoint>> bundles;
  bool away = false;
  int rotations = 0;
  for (TimePoint now = kStart; now < kStart + 400h; now += 1min) {
    if (chance(0.01)) away = !away;
    if (!away) {
      Rotation plan = PlanRotation(all, now, kPolicy);
      for (auto i = plan.ended.rbegin(); i != plan.ended.rend(); ++i) {
        all.erase(all.begin() + static_cast<std::ptrdiff_t>(*i));
        names.erase(names.begin() + static_cast<std::ptrdiff_t>(*i));
      }
      if (plan.create) {
        all.push_back(Made(now));
        all.back().published.reset();
        names.push_back(now);
        ++rotations;
      }
      if (chance(0.5)) {  // Bundles could be written everywhere.
        for (auto& each : all) {
          if (!each.published) each.published = now;
        }
        plan = PlanRotation(all, now, kPolicy);
        std::vector<TimePoint> bundle;
        for (const std::size_t i : plan.trusted) bundle.push_back(names[i]);
        bundles[now] = bundle;
      }
    }
    const Rotation plan = PlanRotation(all, now, kPolicy);
    if (plan.signer) {
      const AuthorityTimes& signer = all[*plan.signer];
      const Validity validity =
          ValidityFrom(now, kPolicy.certificate_lifetime, {signer.created, signer.not_after});
      TimePoint& ends = alive[names[*plan.signer]];
      ends = std::max(ends, validity.not_after);
    }
    std::erase_if(alive, [&](const auto& each) { return each.second <= now; });
    // Everybody's bundle is one of those of the last `propagation`, or the last before that.
    auto oldest = bundles.upper_bound(now - kPolicy.propagation);
    if (oldest != bundles.begin()) --oldest;
    bundles.erase(bundles.begin(), oldest);
    if (now < kStart + 10min) continue;  // Before the first is known nobody has a certificate.
    for (const auto& [written, bundle] : bundles) {
      for (const auto& [authority, ends] : alive) {
        if (std::find(bundle.begin(), bundle.end(), authority) != bundle.end()) continue;
        FAIL("seed " << seed << ", minute " << (now - kStart) / 1min);
      }
    }
  }
  CHECK(rotations >= 5);
}

}  // namespace rouse::tls
