#include "agent/server/state_keeper.h"

#include <pthread.h>

#include <algorithm>

#include "agent/server/clock.h"
#include "agent/state/bundle_fetch.h"
#include "agent/state/kept_list.h"
#include "common/log.h"
#include "common/seeded.h"

namespace rouse::agent {
namespace {

using std::chrono::milliseconds;

/// How often it looks when it leaves.
constexpr milliseconds kLookLeaving{100};

/// It has just come or gone, mostly, or is cut off.
bool MayPass(const Status& status) {
  return status.code() == StatusCode::kUnavailable ||
         status.code() == StatusCode::kDeadlineExceeded;
}

}  // namespace

StateKeeper::StateKeeper(StateKeeperOptions options, Metrics& metrics, StateKeeperHooks hooks,
                         std::unique_ptr<StateStore> store)
    : options_(std::move(options)),
      metrics_(metrics),
      hooks_(std::move(hooks)),
      store_(std::move(store)),
      kept_(*store_, options_.store),
      clients_(hooks_.dial) {}

Result<std::unique_ptr<StateKeeper>> StateKeeper::Create(StateKeeperOptions options,
                                                         Metrics& metrics, StateKeeperHooks hooks) {
  ROUSE_ASSIGN_OR_RETURN(auto store, StateStore::Open(options.store));
  return std::unique_ptr<StateKeeper>(
      new StateKeeper(std::move(options), metrics, std::move(hooks), std::move(store)));
}

StateKeeper::~StateKeeper() = default;

void StateKeeper::Begin() {
  thread_ = std::jthread([this](const std::stop_token& stop) {
    pthread_setname_np(pthread_self(), "keeper");
    Run(stop);
  });
}

void StateKeeper::Stop() {
  if (!thread_.joinable()) return;
  thread_.request_stop();
  thread_.join();
}

void StateKeeper::Run(const std::stop_token& stop) {
  Write();
  while (!stop.stop_requested()) {
    if (Clock::now() - written_ >= std::chrono::seconds(kKeptWrittenS)) Write();
    FetchOne(stop);
    Tend(stop);
    const bool leaving = leaving_;
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, stop, leaving ? std::min(options_.look, kLookLeaving) : options_.look,
                      [&] { return !pending_.empty() || leaving_ != leaving; });
  }
}

std::vector<StateKeeper::Copied> StateKeeper::AllCopied(std::size_t own_copies) const {
  std::vector<Copied> all;
  std::set<BundleKey> own;
  for (auto& held : hooks_.own()) {
    own.insert(held->key());
    if (own_copies == 0) continue;
    all.push_back({.bundle = {.held = std::move(held),
                              .copies = static_cast<std::uint32_t>(own_copies),
                              .used_at_us = NowUs()},
                   .own = true});
  }
  for (KeptBundle& kept : kept_.All()) {
    if (!own.contains(kept.held->key())) all.push_back({.bundle = std::move(kept), .own = false});
  }
  return all;
}

void StateKeeper::Tend(const std::stop_token& stop) {
  const bool leaving = leaving_;
  auto live = hooks_.live();
  if (!live) return;
  for (Keeper& keeper : live->keepers) {
    if (leaving && (keeper.pod == options_.pod || passed_over_.contains(keeper.pod))) {
      keeper.leaving = true;
    }
  }
  // Of this round: one that does not answer holds up the others once, not once for each bundle.
  std::set<std::string> silent;
  std::size_t missing = 0;
  std::set<BundleKey> keys;
  for (const Copied& copied : AllCopied(live->copies)) {
    if (stop.stop_requested()) return;
    keys.insert(copied.bundle.held->key());
    missing += TendOne(copied, *live, silent);
  }
  std::erase_if(said_, [&](const auto& entry) {
    return !keys.contains(entry.first.first) ||
           FindKeeper(live->keepers, entry.first.second) == nullptr;
  });
  std::erase_if(surplus_since_, [&](const auto& entry) { return !keys.contains(entry.first); });
  clients_.KeepOnly(live->keepers);
  metrics_.SetCopiesMissing(missing);
  const std::scoped_lock lock(mutex_);
  handed_over_ = leaving && missing == 0;
  if (handed_over_) changed_.notify_all();
}

std::size_t StateKeeper::TendOne(const Copied& copied, const LiveKeepers& live,
                                 std::set<std::string>& silent) {
  const KeptBundle& bundle = copied.bundle;
  const BundleKey key = bundle.held->key();
  if (!copied.own &&
      NowUs() - bundle.used_at_us > std::chrono::microseconds(options_.unused).count()) {
    GiveUp(key, "unused");
    return 0;
  }
  const auto step = [&] {
    return NextKeepStep(key.fingerprint,
                        {.pod = options_.pod,
                         .own = copied.own,
                         .copies = bundle.copies,
                         .holding = Holding(*bundle.held, live.keepers)},
                        live.keepers);
  };
  for (const Keeper& place : step().places) Ask(bundle, place, silent);
  const KeepStep after = step();
  if (!copied.own) Judge(key, after);
  return after.missing.size();
}

std::set<std::string> StateKeeper::Holding(const HeldBundle& held,
                                           const std::vector<Keeper>& places) const {
  std::set<std::string> holding;
  for (const Keeper& place : places) {
    const auto said = said_.find({held.key(), place.pod});
    if (said != said_.end() && said->second.held && said->second.address == place.address &&
        said->second.digest == held.rank.digest) {
      holding.insert(place.pod);
    }
  }
  return holding;
}

void StateKeeper::Ask(const KeptBundle& bundle, const Keeper& place,
                      std::set<std::string>& silent) {
  const BundleKey key = bundle.held->key();
  const BundleRank& rank = bundle.held->rank;
  Said& said = said_[{key, place.pod}];
  if (said.address != place.address || said.digest != rank.digest) {
    said = Said{.digest = rank.digest, .address = place.address};
  }
  // Who leaves has no time to wait, but for what is there.
  const bool may_wait = said.held || !leaving_;
  if ((may_wait && Clock::now() < said.ask_again) || silent.contains(place.pod)) return;
  http::Client* const client = clients_.To(place);
  const auto answer = client == nullptr ? Result<KeepAnswer>(Unavailable("it cannot be reached"))
                                        : AskToKeep(*client, {.pod = options_.pod,
                                                              .of = key.of,
                                                              .fingerprint = key.fingerprint,
                                                              .bytes = rank.bytes,
                                                              .digest = rank.digest,
                                                              .copies = bundle.copies,
                                                              .used_at_us = bundle.used_at_us});
  NoteAnswer(bundle, place, answer, said);
  if (answer.ok()) {
    kept_.Hear(key, answer->copies, std::min(answer->used_at_us, NowUs()));
    return;
  }
  if (MayPass(answer.status())) silent.insert(place.pod);
  if (leaving_) passed_over_.insert(place.pod);  // The next one may have it instead.
}

void StateKeeper::NoteAnswer(const KeptBundle& bundle, const Keeper& place,
                             const Result<KeepAnswer>& answer, Said& said) {
  const BundleKey key = bundle.held->key();
  said.at = Clock::now();
  said.held = answer.ok() && answer->standing == KeepStanding::kHeld;
  if (answer.ok() && !said.held) {
    said.ask_again = said.at + options_.look;
  } else if (MayPass(answer.status())) {
    said.ask_again = said.at + 3 * options_.look;
  } else {
    // Not all at one time.
    const milliseconds spread(
        static_cast<std::int64_t>(Mix(HashName(key.fingerprint) ^ HashName(place.pod)) %
                                  static_cast<std::uint64_t>(options_.recheck.count() / 4 + 1)));
    said.ask_again = said.at + options_.recheck - spread;
  }
  const std::string& problem = answer.status().message();
  if (!problem.empty() && problem != said.problem) {
    (MayPass(answer.status()) ? log::Info : log::Warning)("a copy of compile caches is not kept",
                                                          {{"keeper", place.pod},
                                                           {"class", ToString(key.of)},
                                                           {"fingerprint", key.fingerprint},
                                                           {"error", answer.status().ToString()}});
  }
  said.problem = problem;
}

void StateKeeper::Judge(const BundleKey& key, const KeepStep& step) {
  if (leaving_) return;
  if (!step.surplus) {
    surplus_since_.erase(key);
    return;
  }
  const Clock::time_point since = surplus_since_.try_emplace(key, Clock::now()).first->second;
  if (Clock::now() - since < options_.surplus) return;
  const bool all_said_so_since =
      std::all_of(step.places.begin(), step.places.end(), [&](const Keeper& place) {
        const auto said = said_.find({key, place.pod});
        return said != said_.end() && said->second.at > since;
      });
  if (all_said_so_since) GiveUp(key, "surplus");
}

bool StateKeeper::HandOver(milliseconds longest) {
  leaving_ = true;
  if (!thread_.joinable() || !hooks_.live()) return true;
  std::unique_lock lock(mutex_);
  changed_.notify_all();
  return changed_.wait_for(lock, longest, [&] { return handed_over_; });
}

}  // namespace rouse::agent
