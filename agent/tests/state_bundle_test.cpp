// What a bundle may be, what agents say to each other about bundles, and when one is waited for.

#include <catch2/catch.hpp>
#include <numeric>

#include "agent/state/hydration.h"
#include "agent/state/state_messages.h"
#include "agent/tests/state_fixture.h"
#include "common/seeded.h"

using namespace rouse;
using namespace rouse::agent;

namespace {

using std::chrono::milliseconds;

constexpr auto kHeld = StateStanding::kHeld;
constexpr auto kCompiling = StateStanding::kCompiling;
constexpr auto kHydrating = StateStanding::kHydrating;
constexpr auto kNone = StateStanding::kNone;

const HydrationLimits kLimits{.deadline = milliseconds(1'000),
                              .first_answer = milliseconds(500),
                              .silence = milliseconds(300)};

HydrationStep Next(std::vector<OtherStanding> others, int elapsed_ms = 0, bool answered = true) {
  return NextHydrationStep({.pod = "demo-1",
                            .decided_at_us = 100,
                            .operator_answered = answered,
                            .others = std::move(others),
                            .elapsed = milliseconds(elapsed_ms)},
                           kLimits);
}

std::string WaitsFor(const HydrationStep& step) {
  const auto* wait = std::get_if<hydration::Wait>(&step);
  return wait != nullptr ? "wait " + wait->pod : "no";
}

std::string Reason(const HydrationStep& step) {
  const auto* give_up = std::get_if<hydration::GiveUp>(&step);
  return give_up != nullptr ? give_up->reason : "no";
}

}  // namespace

TEST_CASE("a bundle is the same after it was sent") {
  const Bundle bundle = GoodBundle();
  const auto again = BundleFromJson(ToJson(bundle));
  INFO(again.status().ToString());
  REQUIRE(again.ok());
  CHECK(*again == bundle);
  CHECK(again->bytes() == 10);
}

TEST_CASE("a hostile bundle is refused, and the error says what is wrong with it") {
  const auto hostile = HostileBundles();
  CHECK(hostile.size() >= 40);
  for (const HostileBundle& one : hostile) {
    json::Json document = ToJson(GoodBundle());
    one.change(document);
    const auto bundle = BundleFromJson(document);
    INFO(one.what << ": " << bundle.status().ToString());
    REQUIRE_FALSE(bundle.ok());
    CHECK(bundle.status().message().size() > 10);
    CHECK(bundle.status().message().size() < 1'000);
  }
}

TEST_CASE("links lead to files and folders of their own cache") {
  Bundle bundle = GoodBundle();
  bundle.entries.push_back(
      FileEntry("vllm/torch_compile_cache/0123456789/rank_0_0/other/artifact", "compiled"));
  for (const char* target : {"artifact", "../backbone/artifact", "../other", "../other/artifact"}) {
    bundle.entries[2].target = target;
    INFO(target);
    CHECK(BundleFromJson(ToJson(bundle)).ok());
  }
}

TEST_CASE("an answer about a bundle is the same after it was sent") {
  const StateAnswer held{.standing = kHeld, .decided_at_us = 7, .bundle = GoodBundle()};
  CHECK(*StateAnswerFromJson(ToJson(held)) == held);
  const StateAnswer none{.standing = kNone, .decided_at_us = 7, .bundle = std::nullopt};
  CHECK(*StateAnswerFromJson(ToJson(none)) == none);
  json::Json lies = ToJson(none);
  lies["standing"] = "Held";
  CHECK_FALSE(StateAnswerFromJson(lies).ok());
  lies = ToJson(held);
  lies["standing"] = "None";
  CHECK_FALSE(StateAnswerFromJson(lies).ok());
}

TEST_CASE("what is said of copies is the same after it was sent, and nonsense is refused") {
  const KeepRequest keep{.pod = "demo-0",
                         .of = CacheClass::kReusable,
                         .fingerprint = kFingerprint,
                         .bytes = 10,
                         .digest = std::string(64, 'a'),
                         .copies = 2,
                         .used_at_us = 7};
  CHECK(*KeepRequestFromJson(ToJson(keep)) == keep);
  const KeepAnswer answer{.standing = KeepStanding::kComing, .copies = 3, .used_at_us = 9};
  CHECK(*KeepAnswerFromJson(ToJson(answer)) == answer);
  for (const auto& [key, value] :
       std::vector<std::pair<std::string, json::Json>>{{"fingerprint", "../x"},
                                                       {"digest", "abc"},
                                                       {"class", "Both"},
                                                       {"copies", 0},
                                                       {"bytes", -1},
                                                       {"bytes", kMaxBundleBytes + 1},
                                                       {"pod", 7}}) {
    json::Json bad = ToJson(keep);
    bad[key] = value;
    INFO(key);
    CHECK(KeepRequestFromJson(bad).status().message().find(key) != std::string::npos);
  }
}

TEST_CASE("what may be read at once has a bound") {
  StateRead read{.of = CacheClass::kMatched,
                 .fingerprint = kFingerprint,
                 .pieces = {{std::string(64, 'a'), 0, kMaxReadBytes}}};
  CHECK(*StateReadFromJson(ToJson(read)) == read);
  read.pieces.push_back({std::string(64, 'b'), 0, 1});
  CHECK_FALSE(StateReadFromJson(ToJson(read)).ok());
  read.pieces = {};
  CHECK_FALSE(StateReadFromJson(ToJson(read)).ok());
  read.pieces.assign(kMaxReadPieces + 1, {std::string(64, 'a'), 0, 1});
  CHECK_FALSE(StateReadFromJson(ToJson(read)).ok());
  read.pieces = {{"../../x", 0, 1}};
  CHECK_FALSE(StateReadFromJson(ToJson(read)).ok());
}

TEST_CASE("reads cover what is missing, each byte once, in order") {
  const std::vector<MissingFile> missing = {
      {"a", 3, 0}, {"b", 10'000'000, 4'000'000}, {"c", 5, 5}, {"d", 0, 0}, {"e", kMaxReadBytes, 0}};
  std::map<std::string, std::uint64_t> at = {{"a", 0}, {"b", 4'000'000}, {"e", 0}};
  for (const StateRead& read : PlanReads(CacheClass::kMatched, kFingerprint, missing)) {
    CHECK(read.bytes() <= kMaxReadBytes);
    CHECK(read.pieces.size() <= kMaxReadPieces);
    for (const StatePiece& piece : read.pieces) {
      CHECK(at.at(piece.sha256) == piece.offset);
      at[piece.sha256] += piece.bytes;
    }
  }
  CHECK(at ==
        std::map<std::string, std::uint64_t>{{"a", 3}, {"b", 10'000'000}, {"e", kMaxReadBytes}});
  std::vector<MissingFile> many(2'000, {"x", 1, 0});
  CHECK(PlanReads(CacheClass::kMatched, kFingerprint, many).size() == 4);
}

TEST_CASE("whoever holds the bundle is asked for it, the first one named") {
  const auto step = Next({{"demo-0", kCompiling, 1}, {"demo-2", kHeld, 200}, {"demo-3", kHeld, 1}});
  REQUIRE(std::holds_alternative<hydration::Take>(step));
  CHECK(std::get<hydration::Take>(step).pod == "demo-2");
  // After the deadline too: it is there.
  CHECK(std::holds_alternative<hydration::Take>(Next({{"demo-2", kHeld, 200}}, 5'000)));
}

TEST_CASE("an instance that compiles is waited for, until the deadline") {
  CHECK(WaitsFor(Next({{"demo-0", kCompiling, 1}})) == "wait demo-0");
  CHECK(WaitsFor(Next({{"demo-2", kCompiling, 900}})) == "wait demo-2");
  CHECK(Reason(Next({{"demo-0", kCompiling, 1}}, 1'000)) ==
        "demo-0 has not got them ready within 1 s");
}

TEST_CASE(
    "of those that look, the ones decided later wait for the earlier ones, never each other") {
  CHECK(WaitsFor(Next({{"demo-0", kHydrating, 99}})) == "wait demo-0");
  CHECK(Reason(Next({{"demo-0", kHydrating, 101}})) == "none of 1 other instances has them");
  // Decided at the same time: by name.
  CHECK(WaitsFor(Next({{"demo-0", kHydrating, 100}})) == "wait demo-0");
  CHECK(Reason(Next({{"demo-2", kHydrating, 100}})) != "no");
}

TEST_CASE("an earlier instance that does not answer is waited for a moment") {
  CHECK(WaitsFor(Next({{"demo-0", std::nullopt, 1}})) == "wait demo-0");
  CHECK(Reason(Next({{"demo-0", std::nullopt, 1}}, 300)) == "none of 1 other instances has them");
  CHECK(Reason(Next({{"demo-2", std::nullopt, 200}})) == "none of 1 other instances has them");
}

TEST_CASE(
    "the first instance starts without at once, and an operator that is away holds up nobody") {
  CHECK(Reason(Next({})) == "no other instance runs");
  CHECK(Reason(Next({{"demo-0", kNone, 1}})) == "none of 1 other instances has them");
  CHECK(WaitsFor(Next({}, 0, false)) == "wait ");
  CHECK(Reason(Next({}, 500, false)).find("operator") != std::string::npos);
}

TEST_CASE("with no deadline nobody is waited for, and what is there is taken") {
  HydrationLimits limits = kLimits;
  limits.deadline = milliseconds(0);
  HydrationView view{.pod = "demo-1",
                     .decided_at_us = 100,
                     .operator_answered = true,
                     .others = {{"demo-0", kCompiling, 1}},
                     .elapsed = milliseconds(0)};
  CHECK(std::holds_alternative<hydration::GiveUp>(NextHydrationStep(view, limits)));
  view.others[0].standing = kHeld;
  CHECK(std::holds_alternative<hydration::Take>(NextHydrationStep(view, limits)));
}

TEST_CASE("an engine starts without one class of caches once it waits for no other") {
  const HydrationStep without = hydration::GiveUp{"none"};
  CHECK(StartsWithout(std::array{without}));
  CHECK(StartsWithout(std::array{without, without}));
  CHECK_FALSE(StartsWithout(std::array{without, HydrationStep(hydration::Wait{"demo-0"})}));
  CHECK_FALSE(StartsWithout(std::array{without, HydrationStep(hydration::Take{"demo-0"})}));
  CHECK_FALSE(StartsWithout({}));
}

namespace {

// An instance that looks for two classes of caches, one after the other, while others do too.
struct Looking {
  std::array<StateStanding, 2> standing = {kHydrating, kHydrating};
  std::vector<HydrationStep> steps;
  bool known = false;  // to the operator, and so to the others
};

// One question of the instance `self`.
void AskOne(std::vector<Looking>& all, std::size_t self) {
  Looking& me = all[self];
  if (me.standing[0] != kHydrating) return;
  HydrationView view{.pod = std::to_string(self), .operator_answered = true, .others = {}};
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (i != self && all[i].known) {
      view.others.push_back({std::to_string(i), all[i].standing[me.steps.size()], 0});
    }
  }
  me.known = true;
  me.steps.push_back(NextHydrationStep(view, kLimits));
  if (me.steps.size() < me.standing.size()) return;
  if (StartsWithout(me.steps)) me.standing = {kCompiling, kCompiling};
  me.steps.clear();
}

}  // namespace

TEST_CASE("of instances that start together one compiles, in whatever order they ask") {
  std::uint64_t seed = 1;
  for (int round = 0; round < 500; ++round) {
    std::vector<Looking> all(2 + round % 4);
    for (int i = 0; i < 100; ++i) {
      seed = Mix(seed);
      AskOne(all, seed % all.size());
    }
    const auto compiling = std::count_if(
        all.begin(), all.end(), [](const Looking& one) { return one.standing[0] == kCompiling; });
    CAPTURE(round);
    CHECK(compiling >= 1);
  }
}
