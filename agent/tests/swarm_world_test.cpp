// A target in random worlds: sources that die loudly or silently, send damage, grow, come late.

#include <catch2/catch.hpp>
#include <map>
#include <random>
#include <set>

#include "agent/memory/chunk_digest.h"
#include "agent/transfer/swarm_plan.h"

namespace rouse::transfer {
namespace {

using std::chrono::milliseconds;

enum class Death { kNever, kLoud, kSilent };

struct PlayedSource {
  SwarmSource info;
  std::set<std::uint64_t> has;
  std::set<std::uint64_t> shown;  // at the last look
  int damage_percent = 0;
  Death death = Death::kNever;
  int dies_at_step = 0;
  int joins_at_step = 0;
  bool joined = false;
  bool dead = false;
  bool aside = false;
  bool looked_at = false;  // a look is under way
  SourceId id = 0;
};

class World {
 public:
  explicit World(std::uint32_t seed) : random_(seed), plan_(MakeOptions()) {
    const auto count = Draw(1, 6);
    for (std::uint64_t i = 0; i < count; ++i) sources_.push_back(MakeSource(i));
  }

  // Runs to the end; returns whether it finished.
  bool Run();
  // Whether a source was there at the start that has everything, never dies and sends no damage.
  bool HasRock() const {
    return std::any_of(sources_.begin(), sources_.end(), [](const PlayedSource& source) {
      return source.info.complete && source.death == Death::kNever && source.damage_percent == 0 &&
             source.joins_at_step == 0;
    });
  }

 private:
  std::uint64_t Draw(std::uint64_t low, std::uint64_t high) {
    return std::uniform_int_distribution<std::uint64_t>(low, high)(random_);
  }
  bool Chance(int percent) { return Draw(1, 100) <= static_cast<std::uint64_t>(percent); }

  std::vector<std::uint64_t> Boundaries() {
    std::vector<std::uint64_t> all;
    for (std::uint64_t at = 0; at < options_.arena_bytes; at += Draw(1, 100)) all.push_back(at);
    return all;
  }

  SwarmPlanOptions MakeOptions() {
    options_.arena_bytes = Draw(1, 500);
    options_.chunk_bytes = Draw(1, 40);
    options_.piece_bytes = Draw(1, 40);
    options_.boundaries = Boundaries();
    options_.window = static_cast<std::uint32_t>(Draw(1, 12));
    options_.max_unverified = static_cast<std::uint32_t>(Draw(1, 12));
    options_.max_damaged = static_cast<std::uint32_t>(Draw(1, 3));
    options_.progress_deadline = milliseconds(200);
    options_.piece_deadline = milliseconds(300);
    options_.starved_deadline = milliseconds(Draw(0, 1) * 500);
    options_.min_bytes_per_second = 0;  // arenas of some bytes
    if (Chance(80)) options_.seed = Draw(1, 1000);
    chunks_ = ChunkCount(options_.arena_bytes, options_.chunk_bytes);
    return options_;
  }

  PlayedSource MakeSource(std::uint64_t index) {
    PlayedSource source;
    source.info = {.name = "source-" + std::to_string(index),
                   .tier = static_cast<Tier>(Draw(0, 4)),
                   .max_in_flight = static_cast<std::uint32_t>(Draw(1, 4)),
                   .complete = Chance(40),
                   .boundaries = Boundaries()};
    for (std::uint64_t i = 0; i < chunks_; ++i) {
      if (source.info.complete || Chance(30)) source.has.insert(i);
    }
    if (source.info.complete) source.shown = source.has;
    if (Chance(30)) source.damage_percent = Chance(30) ? 100 : 20;
    if (Chance(40)) source.death = Chance(50) ? Death::kLoud : Death::kSilent;
    source.dies_at_step = static_cast<int>(Draw(1, 300));
    if (Chance(30)) source.joins_at_step = static_cast<int>(Draw(1, 300));
    return source;
  }

  PlayedSource& Of(SourceId id) {
    return *std::find_if(sources_.begin(), sources_.end(), [&](const PlayedSource& source) {
      return source.joined && source.id == id;
    });
  }

  void Happen(int step);
  void Check(const StartGet& get);
  void CheckFailure(const Status& status);
  void AnswerOne(TimePoint wait_until);

  std::mt19937 random_;
  SwarmPlanOptions options_;
  std::uint64_t chunks_ = 0;
  SwarmPlan plan_;
  std::vector<PlayedSource> sources_;
  TimePoint now_{};
  std::vector<StartGet> flight_;
  std::vector<std::pair<std::uint64_t, SourceId>> digests_;
  std::map<std::uint64_t, std::vector<StartGet>> of_chunk_;  // asked, not verified
  std::set<std::pair<std::uint64_t, SourceId>> damaged_;
  std::vector<int> good_ = std::vector<int>(options_.arena_bytes, 0);
};

// Deaths, arrivals and growth that are due.
void World::Happen(int step) {
  for (PlayedSource& source : sources_) {
    if (!source.joined && step >= source.joins_at_step) {
      source.id = plan_.AddSource(source.info, now_);
      source.joined = true;
    }
    if (source.joined && !source.dead && source.death != Death::kNever &&
        step >= source.dies_at_step) {
      source.dead = true;
      if (source.death == Death::kLoud) plan_.OnSourceFailed(source.id, Unavailable("died"));
    }
    if (!source.dead && Chance(20)) source.has.insert(Draw(0, chunks_ - 1));
  }
}

void World::Check(const StartGet& get) {
  const std::uint64_t chunk = get.offset / options_.chunk_bytes;
  const PlayedSource& source = Of(get.source);
  REQUIRE(get.bytes > 0);
  REQUIRE(get.bytes <= options_.piece_bytes);
  REQUIRE((get.offset + get.bytes - 1) / options_.chunk_bytes == chunk);
  for (const auto& boundaries : {options_.boundaries, source.info.boundaries}) {
    for (const std::uint64_t edge : boundaries) {
      REQUIRE_FALSE((get.offset < edge && edge < get.offset + get.bytes));
    }
  }
  REQUIRE_FALSE(source.aside);
  REQUIRE(source.shown.contains(chunk));
  for (const StartGet& other : of_chunk_[chunk]) {
    REQUIRE(other.source == get.source);
    REQUIRE((other.offset + other.bytes <= get.offset || get.offset + get.bytes <= other.offset));
  }
  if (of_chunk_[chunk].empty() && damaged_.contains({chunk, get.source})) {
    for (const PlayedSource& other : sources_) {
      REQUIRE_FALSE((other.joined && !other.aside && other.shown.contains(chunk) &&
                     !damaged_.contains({chunk, other.id})));
    }
  }
  flight_.push_back(get);
  of_chunk_[chunk].push_back(get);
  REQUIRE(flight_.size() <= options_.window);
  REQUIRE(of_chunk_.size() <= options_.max_unverified);
  const auto on_it = std::count_if(flight_.begin(), flight_.end(), [&](const StartGet& other) {
    return other.source == get.source;
  });
  REQUIRE(on_it <= source.info.max_in_flight);
}

// A failure is true if nothing is under way and nobody who may be asked shows a missing chunk.
void World::CheckFailure(const Status& status) {
  REQUIRE(flight_.empty());
  REQUIRE(digests_.empty());
  REQUIRE_FALSE(status.ok());
  std::uint64_t missing = 0;
  for (std::uint64_t chunk = 0; chunk < chunks_; ++chunk) {
    if (plan_.verified().Test(chunk)) continue;
    ++missing;
    for (const PlayedSource& source : sources_) {
      REQUIRE_FALSE((source.joined && !source.aside && source.shown.contains(chunk)));
    }
  }
  REQUIRE(missing > 0);
  REQUIRE_THAT(status.message(), Catch::StartsWith(std::to_string(missing) + " of " +
                                                   std::to_string(chunks_) + " chunks"));
}

// One thing that was asked for comes, or time passes.
void World::AnswerOne(TimePoint wait_until) {
  std::vector<StartGet> coming;
  for (const StartGet& get : flight_) {
    if (!Of(get.source).dead) coming.push_back(get);
  }
  std::vector<PlayedSource*> looks;
  for (PlayedSource& source : sources_) {
    if (source.looked_at && !source.dead && !source.aside) looks.push_back(&source);
  }
  const std::uint64_t choices = coming.size() + looks.size() + digests_.size();
  if (choices == 0) {
    now_ = std::max(now_ + milliseconds(1), wait_until);
    return;
  }
  now_ += milliseconds(1);
  std::uint64_t choice = Draw(0, choices - 1);
  if (choice < coming.size()) {
    const StartGet get = coming[choice];
    std::erase(flight_, get);
    const auto chunk = plan_.OnArrived(get.piece, now_);
    if (chunk) digests_.emplace_back(*chunk, get.source);
    return;
  }
  choice -= coming.size();
  if (choice < looks.size()) {
    PlayedSource& source = *looks[choice];
    source.looked_at = false;
    source.shown.insert(source.has.begin(), source.has.end());
    ChunkSet bits(chunks_);
    for (const std::uint64_t chunk : source.shown) bits.Set(chunk);
    plan_.OnAvailability(source.id, bits.words(), now_);
    return;
  }
  const auto at = digests_.begin() + static_cast<std::ptrdiff_t>(choice - looks.size());
  const auto [chunk, from] = *at;
  digests_.erase(at);
  const bool matches = !Chance(Of(from).damage_percent);
  if (!matches) damaged_.emplace(chunk, from);
  for (const StartGet& get : of_chunk_[chunk]) {
    for (std::uint64_t i = get.offset; matches && i < get.offset + get.bytes; ++i) ++good_[i];
  }
  of_chunk_.erase(chunk);
  plan_.OnDigest(chunk, matches);
}

bool World::Run() {
  for (int step = 0; step < 100'000; ++step) {
    Happen(step);
    const SwarmAction action = plan_.Next(now_);
    if (std::holds_alternative<Finish>(action)) {
      REQUIRE(std::all_of(good_.begin(), good_.end(), [](int times) { return times == 1; }));
      REQUIRE(plan_.counters().bytes_verified == options_.arena_bytes);
      REQUIRE(plan_.verified().Count() == chunks_);
      std::uint64_t by_source = 0;
      for (const SourceReport& report : plan_.Sources()) by_source += report.bytes_verified;
      REQUIRE(by_source == options_.arena_bytes);
      return true;
    }
    if (const auto* fail = std::get_if<Fail>(&action)) {
      CheckFailure(fail->status);
      return false;
    }
    if (const auto* get = std::get_if<StartGet>(&action)) {
      Check(*get);
    } else if (const auto* look = std::get_if<RefreshAvailability>(&action)) {
      PlayedSource& source = Of(look->source);
      REQUIRE_FALSE(source.aside);
      REQUIRE_FALSE(source.looked_at);
      REQUIRE_FALSE(source.info.complete);
      source.looked_at = true;
    } else if (const auto* aside = std::get_if<PutAside>(&action)) {
      PlayedSource& source = Of(aside->source);
      REQUIRE_FALSE(source.aside);
      REQUIRE((source.dead || source.damage_percent > 0));
      source.aside = true;
      std::erase_if(flight_, [&](const StartGet& lost) { return lost.source == source.id; });
      // What it owes will be asked for anew; what has wholly arrived is still digested.
      std::erase_if(of_chunk_, [&](const auto& entry) {
        return entry.second.front().source == source.id &&
               std::none_of(digests_.begin(), digests_.end(),
                            [&](const auto& digest) { return digest.first == entry.first; });
      });
    } else {
      AnswerOne(std::get<Wait>(action).until);
    }
  }
  FAIL("no end");
  return false;
}

TEST_CASE("every pull in a random world ends with all chunks verified, or a failure that is true",
          "[swarm][property]") {
  int finished = 0;
  int failed = 0;
  for (std::uint32_t seed = 1; seed <= 3000; ++seed) {
    CAPTURE(seed);
    World world(seed);
    const bool done = world.Run();
    if (world.HasRock()) REQUIRE(done);
    ++(done ? finished : failed);
  }
  // Worlds of both kinds were tried.
  REQUIRE(finished > 500);
  REQUIRE(failed > 500);
}

}  // namespace
}  // namespace rouse::transfer
