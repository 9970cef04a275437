// 50 agents that keep each other's caches while a third of them is replaced.

#include <sys/resource.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <thread>

#include "agent/state/bundle_fetch.h"
#include "agent/tests/state_agents.h"
#include "common/seeded.h"
#include "common/tests/eventually.h"

using namespace rouse;
using namespace rouse::agent;
using test::Eventually;

namespace {

constexpr std::size_t kCopies = 2;

// Sanitizers make an agent several times as expensive.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr int kAgents = 15;
constexpr int kKilled = 3;
constexpr std::size_t kLeaving = 2;
#else
constexpr int kAgents = 50;
constexpr int kKilled = 10;
constexpr std::size_t kLeaving = 5;
#endif

struct PlacedBundle {
  BundleKey key;
  std::string owner;
  std::uint64_t bytes = 0;
};

class Crowd {
 public:
  void Start(int number) {
    const std::string name = "demo-" + std::to_string(number);
    ideal_ += IdealOfChange([&](std::vector<Keeper>& after) {
      after.push_back({.pod = name, .node = "node-of-" + name});
    });
    const ServingAgent& agent =
        *agents_.emplace(name, std::make_unique<ServingAgent>(named_, name)).first->second;
    for (const CacheClass of : {CacheClass::kMatched, CacheClass::kReusable}) {
      const BundleKey key = ServingAgent::KeyOf(name, of);
      REQUIRE(Eventually([&] { return agent.Holds(key); }));
      bundles_.push_back({.key = key,
                          .owner = name,
                          .bytes = agent.state().Answer(of, key.fingerprint).bundle->bytes()});
      for (const Keeper& place : PlacesOf(key.fingerprint, named_.Now(), kCopies)) {
        if (place.pod != name) ideal_ += bundles_.back().bytes;
      }
    }
  }

  /// Without a word.
  void Kill(const std::string& name) {
    ideal_ += IdealOfChange([&](std::vector<Keeper>& after) {
      std::erase_if(after, [&](const Keeper& keeper) { return keeper.pod == name; });
    });
    End(name);
  }
  /// All at one time, as when a ModelService is scaled to zero.
  void Leave(const std::set<std::string>& names) {
    ideal_ += IdealOfChange([&](std::vector<Keeper>& after) {
      std::erase_if(after, [&](const Keeper& keeper) { return names.contains(keeper.pod); });
    });
    {
      std::vector<std::jthread> threads;
      for (const std::string& name : names) {
        threads.emplace_back([agent = agents_.at(name).get()] { agent->Leave(); });
      }
    }
    for (const std::string& name : names) End(name);
  }

  /// Asks keepers for bundles as an agent that starts does; `keepers` is the list that it goes by.
  /// What was compiled a moment ago and is nowhere else yet is not among them: it is found with who
  /// has compiled it, whom others of its launch ask first.
  void LookUp(const std::vector<Keeper>& keepers, int times) {
    std::map<std::string, std::unique_ptr<http::Client>> clients;
    for (int i = 0; i < times; ++i) {
      seed_ = Mix(seed_);
      const PlacedBundle& bundle = bundles_[seed_ % placed_];
      const auto found =
          FindBundle(WhomToAsk(bundle.key.fingerprint, keepers, kCopies, ""), bundle.key.of,
                     bundle.key.fingerprint, {}, [&](const Keeper& keeper) {
                       auto& client = clients[keeper.address];
                       if (client == nullptr) {
                         client = *http::Client::Create(keeper.address);
                       }
                       return client.get();
                     });
      ++asked_;
      if (found && found->bundle.bytes() == bundle.bytes) ++found_;
    }
  }

  /// Until every place of every bundle has it.
  void WaitForCopies() {
    REQUIRE(Eventually(
        [&] {
          const auto keepers = named_.Now();
          return std::all_of(bundles_.begin(), bundles_.end(), [&](const PlacedBundle& bundle) {
            const auto places = PlacesOf(bundle.key.fingerprint, keepers, kCopies);
            return std::all_of(places.begin(), places.end(), [&](const Keeper& place) {
              return agents_.at(place.pod)->Holds(bundle.key);
            });
          });
        },
        std::chrono::seconds(120)));
    placed_ = bundles_.size();
  }

  std::vector<Keeper> named() const { return named_.Now(); }
  std::string AnyAgent() {
    seed_ = Mix(seed_);
    return std::next(agents_.begin(), static_cast<std::ptrdiff_t>(seed_ % agents_.size()))->first;
  }
  double moved() const {
    double total = moved_by_the_gone_;
    for (const auto& [name, agent] : agents_) total += agent->Metric(kCopiedBytes);
    return total;
  }
  double ideal() const { return static_cast<double>(ideal_); }
  int asked() const { return asked_; }
  int found() const { return found_; }
  std::size_t bundles() const { return bundles_.size(); }

 private:
  static constexpr char kCopiedBytes[] = "rouse_state_copied_bytes_total";

  void End(const std::string& name) {
    named_.Remove(name);
    moved_by_the_gone_ += agents_.at(name)->Metric(kCopiedBytes);
    agents_.erase(name);
  }
  /// What rendezvous hashing moves when the list changes: to each new place, once.
  std::uint64_t IdealOfChange(const std::function<void(std::vector<Keeper>&)>& change) const {
    const auto before = named_.Now();
    auto after = before;
    change(after);
    std::uint64_t bytes = 0;
    for (const PlacedBundle& bundle : bundles_) {
      const auto had = PlacesOf(bundle.key.fingerprint, before, kCopies);
      for (const Keeper& place : PlacesOf(bundle.key.fingerprint, after, kCopies)) {
        if (FindKeeper(had, place.pod) == nullptr && place.pod != bundle.owner) {
          bytes += bundle.bytes;
        }
      }
    }
    return bytes;
  }

  NamedAgents named_{kCopies};
  std::map<std::string, std::unique_ptr<ServingAgent>> agents_;
  std::vector<PlacedBundle> bundles_;
  std::size_t placed_ = 0;  ///< So many of them have had all their copies.
  std::uint64_t seed_ = 8;
  double moved_by_the_gone_ = 0;
  std::uint64_t ideal_ = 0;
  int asked_ = 0;
  int found_ = 0;
};

void AllowManyFiles() {
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

}  // namespace

TEST_CASE("Caches are found, and move no more than they must, while 30 % of 50 agents go") {
  AllowManyFiles();
  Crowd crowd;
  int next = 0;
  while (next < kAgents) crowd.Start(next++);
  crowd.WaitForCopies();
  CHECK(crowd.bundles() == 2 * kAgents);
  // Some are killed, each replaced by another one; lookups come while copies are made anew, from
  // agents that have heard of it and from some that have not.
  for (int i = 0; i < kKilled; ++i) {
    const auto before = crowd.named();
    crowd.Kill(crowd.AnyAgent());
    crowd.LookUp(before, 50);
    crowd.Start(next++);
    crowd.LookUp(crowd.named(), 100);
    crowd.WaitForCopies();
  }
  // Some leave at one time.
  std::set<std::string> leaving;
  while (leaving.size() < kLeaving) leaving.insert(crowd.AnyAgent());
  crowd.Leave(leaving);
  crowd.LookUp(crowd.named(), 200);
  for (std::size_t i = 0; i < kLeaving; ++i) crowd.Start(next++);
  crowd.LookUp(crowd.named(), 300);
  crowd.WaitForCopies();

  WARN("found " << crowd.found() << " of " << crowd.asked() << "; moved " << crowd.moved()
                << " bytes, the ideal is " << crowd.ideal() << " (" << crowd.moved() / crowd.ideal()
                << ")");
  CHECK(crowd.asked() == kKilled * 150 + 500);
  CHECK(crowd.found() * 1'000 >= crowd.asked() * 999);
  CHECK(crowd.moved() <= 1.2 * crowd.ideal());
  CHECK(crowd.moved() >= 0.5 * crowd.ideal());
}
