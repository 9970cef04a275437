#include "agent/server/state_reuse.h"

#include <pthread.h>

#include "agent/server/rank_name.h"
#include "agent/state/fingerprint.h"
#include "common/log.h"
#include "common/stoppable_sleep.h"

namespace rouse::agent {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

/// Once they are published: what an engine adds later is little.
constexpr milliseconds kLookRarely{30'000};

CacheSnapshot WithoutDigests(CacheSnapshot entries) {
  for (BundleEntry& entry : entries) entry.sha256.clear();
  return entries;
}

std::string MissText(const CacheLookup& lookup) {
  std::string text = lookup.cache + " missed";
  if (!lookup.where.empty()) text += " at " + lookup.where;
  if (!lookup.reason.empty()) text += ": " + lookup.reason;
  if (lookup.factors.empty()) return text;
  text += "; what differs from the installed caches: ";
  for (std::size_t i = 0; i < lookup.factors.size(); ++i) {
    text += (i == 0 ? "" : ", ") + lookup.factors[i];
  }
  return text;
}

}  // namespace

StateReuse::StateReuse(StateReuseOptions options, Metrics& metrics, StateReuseHooks hooks,
                       std::unique_ptr<StateStore> store)
    : options_(std::move(options)),
      metrics_(metrics),
      hooks_(std::move(hooks)),
      store_(std::move(store)),
      began_(Clock::now()),
      clients_(hooks_.dial) {
  slots_[0].of = CacheClass::kMatched;
  slots_[1].of = CacheClass::kReusable;
}

Result<std::unique_ptr<StateReuse>> StateReuse::Create(StateReuseOptions options, Metrics& metrics,
                                                       StateReuseHooks hooks) {
  ROUSE_ASSIGN_OR_RETURN(auto store, StateStore::Open(options.store));
  auto reuse = std::unique_ptr<StateReuse>(
      new StateReuse(std::move(options), metrics, std::move(hooks), std::move(store)));
  StateKeeperOptions keeper = reuse->options_.keeper;
  keeper.pod = reuse->options_.pod;
  keeper.store = reuse->options_.store;
  // Both may fetch the same file at one time: each has parts of its own.
  keeper.store.owner += "-keeper";
  StateReuse* const self = reuse.get();
  ROUSE_ASSIGN_OR_RETURN(
      reuse->keeper_,
      StateKeeper::Create(std::move(keeper), metrics,
                          {.live = self->hooks_.keepers, .dial = self->hooks_.dial, .own = [self] {
                             return self->Own();
                           }}));
  return reuse;
}

void StateReuse::Begin(bool look) {
  began_ = Clock::now();
  thread_ = std::jthread([this, look](const std::stop_token& stop) {
    pthread_setname_np(pthread_self(), "state");
    Run(stop, look);
  });
  keeper_->Begin();
}

void StateReuse::Stop() {
  keeper_->Stop();
  if (!thread_.joinable()) return;
  thread_.request_stop();
  thread_.join();
}

StateReuse::~StateReuse() = default;

void StateReuse::Run(const std::stop_token& stop, bool look) {
  const Machine machine = ThisMachine(options_.gpus());
  {
    const std::scoped_lock lock(mutex_);
    for (Slot& slot : slots_) {
      slot.fingerprint = Fingerprint(
          slot.of,
          slot.of == CacheClass::kMatched ? options_.launch_identity : options_.engine_identity,
          machine);
    }
  }
  if (look) {
    Hydrate(stop);
    if (stop.stop_requested()) return;
    const Slot& matched = slots_[0];
    const auto siblings = hooks_.siblings();
    const bool first = siblings && siblings->empty();
    hooks_.on_settled(options_.required && !matched.installed && !first
                          ? FailedPrecondition("no compile caches to install (" + matched.origin +
                                               "), and fastStart.state.required is true")
                          : Status());
  } else {
    for (Slot& slot : slots_) {
      if (auto kept = store_->Find(slot.of, slot.fingerprint); kept.ok()) {
        Hold(slot, *std::move(kept));
      } else {
        Settle(slot, "the engine was there before this agent");
      }
    }
  }
  bool published = false;
  while (!stop.stop_requested()) {
    SleepUntil(Clock::now() + (published ? kLookRarely : options_.settle), stop);
    if (stop.stop_requested()) return;
    if (!serving_) continue;
    published = true;
    for (Slot& slot : slots_) {
      PublishWhenSettled(slot);
      published = published && (slot.held || slot.standing == StateStanding::kNone);
    }
  }
}

void StateReuse::Hold(Slot& slot, Bundle bundle) {
  auto held = MakeHeld(std::move(bundle));
  const std::scoped_lock lock(mutex_);
  slot.held = std::move(held);
  slot.standing = StateStanding::kHeld;
}

Result<CacheSnapshot> StateReuse::Look(CacheClass of) const {
  return LookAtCaches(options_.folder, {.of = of, .startup_plan = options_.startup_plan});
}

void StateReuse::PublishWhenSettled(Slot& slot) {
  auto look = Look(slot.of);
  Status problem = look.status();
  if (look.ok()) {
    const bool settled = slot.last_look && *slot.last_look == *look;
    slot.last_look = *look;
    if (!settled) return;
    if (look->empty()) {
      const std::scoped_lock lock(mutex_);
      if (!slot.held) slot.standing = StateStanding::kNone;
      return;
    }
    if (slot.held && WithoutDigests(slot.held->bundle.entries) == *look) return;
    auto published = PublishCaches(
        *store_, options_.folder, {.of = slot.of, .startup_plan = options_.startup_plan},
        slot.fingerprint, *look, slot.held ? slot.held->bundle : Bundle());
    problem = published.status();
    if (published.ok()) {
      log::Info("compile caches published", {{"class", ToString(slot.of)},
                                             {"fingerprint", slot.fingerprint},
                                             {"files", published->entries.size()},
                                             {"bytes", published->bytes()}});
      metrics_.CountBundle(ToString(slot.of), "published");
      Hold(slot, *std::move(published));
      store_->Trim({slots_[0].fingerprint, slots_[1].fingerprint});
    }
  }
  if (problem.ok() || problem.code() == StatusCode::kUnavailable) return;
  if (problem.message() != slot.last_problem) {
    log::Warning("compile caches not published",
                 {{"class", ToString(slot.of)}, {"error", problem.ToString()}});
    metrics_.CountBundle(ToString(slot.of), "failed");
  }
  slot.last_problem = problem.message();
  const std::scoped_lock lock(mutex_);
  if (!slot.held) slot.standing = StateStanding::kNone;
}

void StateReuse::OnCacheUse(const CacheUseRequest& use) {
  std::string miss;
  {
    const std::scoped_lock lock(mutex_);
    for (const CacheLookup& lookup : use.lookups) {
      log::Info("engine looked into its caches", {{"rank", use.rank},
                                                  {"cache", lookup.cache},
                                                  {"hits", lookup.hits},
                                                  {"misses", lookup.misses},
                                                  {"where", lookup.where},
                                                  {"reason", lookup.reason},
                                                  {"differs", lookup.factors}});
      metrics_.CountLookups(lookup.cache, lookup.hits, lookup.misses);
      if (!slots_[0].installed || lookup.misses == 0) continue;
      metrics_.CountUnused(lookup.cache, FactorKind(lookup));
      log::Warning("installed compile caches were not used", {{"rank", use.rank},
                                                              {"cache", lookup.cache},
                                                              {"reason", lookup.reason},
                                                              {"differs", lookup.factors}});
      if (miss.empty()) miss = MissText(lookup);
    }
    misses_[use.rank] = miss;
  }
  hooks_.on_change();
}

std::vector<std::shared_ptr<const HeldBundle>> StateReuse::Own() const {
  const std::scoped_lock lock(mutex_);
  std::vector<std::shared_ptr<const HeldBundle>> own;
  for (const Slot& slot : slots_) {
    if (slot.held) own.push_back(slot.held);
  }
  return own;
}

std::shared_ptr<const HeldBundle> StateReuse::Held(const BundleKey& key) const {
  for (auto& held : Own()) {
    if (held->key() == key) return held;
  }
  return keeper_->Find(key);
}

StateAnswer StateReuse::Answer(CacheClass of, const std::string& fingerprint) const {
  StateAnswer answer{.standing = StateStanding::kNone,
                     .decided_at_us = options_.decided_at_us,
                     .bundle = std::nullopt};
  if (const auto held = Held({of, fingerprint})) {
    answer.standing = StateStanding::kHeld;
    answer.bundle = held->bundle;
    return answer;
  }
  const std::scoped_lock lock(mutex_);
  for (const Slot& slot : slots_) {
    // What is held since a moment ago is asked for again.
    if (slot.of == of && slot.fingerprint == fingerprint && !slot.held) {
      answer.standing = slot.standing;
    }
  }
  return answer;
}

Result<std::string> StateReuse::Read(const StateRead& read) const {
  const auto held = Held({read.of, read.fingerprint});
  if (held == nullptr) return NotFound("this agent does not hold that bundle");
  return ReadPieces(*store_, *held, read);
}

Result<KeepAnswer> StateReuse::Keep(const KeepRequest& offer) {
  {
    const std::scoped_lock lock(mutex_);
    for (const Slot& slot : slots_) {
      if (slot.of != offer.of || slot.fingerprint != offer.fingerprint ||
          slot.standing == StateStanding::kNone) {
        continue;
      }
      return KeepAnswer{slot.held ? KeepStanding::kHeld : KeepStanding::kComing, offer.copies,
                        offer.used_at_us};
    }
  }
  return keeper_->Offer(offer);
}

void StateReuse::HandOver(milliseconds longest) {
  if (!keeper_->HandOver(longest)) {
    log::Info("not all compile caches that this agent holds have their copies elsewhere");
  }
}

bool StateReuse::installed() const {
  const std::scoped_lock lock(mutex_);
  return slots_[0].installed;
}

std::string StateReuse::origin() const {
  const std::scoped_lock lock(mutex_);
  return slots_[0].origin;
}

std::string StateReuse::miss() const {
  const std::scoped_lock lock(mutex_);
  for (const auto& [rank, text] : misses_) {
    if (!text.empty()) {
      return misses_.size() == 1 ? text : RankName(rank) + ": " + text;
    }
  }
  return "";
}

}  // namespace rouse::agent
