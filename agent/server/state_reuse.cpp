#include "agent/server/state_reuse.h"

#include <pthread.h>

#include <algorithm>

#include "agent/state/bundle_fetch.h"
#include "agent/state/fingerprint.h"
#include "common/log.h"
#include "common/stoppable_sleep.h"

namespace rouse::agent {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr milliseconds kAskAgain{300};
/// Once they are published: what an engine adds later is little.
constexpr milliseconds kLookRarely{30'000};

CacheSnapshot WithoutDigests(CacheSnapshot entries) {
  for (BundleEntry& entry : entries) entry.sha256.clear();
  return entries;
}

std::string OfferKey(CacheClass of, const std::string& pod) {
  return std::string(ToString(of)) + " " + pod;
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
      began_(Clock::now()) {
  slots_[0].of = CacheClass::kMatched;
  slots_[1].of = CacheClass::kReusable;
}

Result<std::unique_ptr<StateReuse>> StateReuse::Create(StateReuseOptions options, Metrics& metrics,
                                                       StateReuseHooks hooks) {
  ROUSE_ASSIGN_OR_RETURN(auto store, StateStore::Open(options.store));
  return std::unique_ptr<StateReuse>(
      new StateReuse(std::move(options), metrics, std::move(hooks), std::move(store)));
}

void StateReuse::Begin(bool look) {
  began_ = Clock::now();
  thread_ = std::jthread([this, look](const std::stop_token& stop) {
    pthread_setname_np(pthread_self(), "state");
    Run(stop, look);
  });
}

void StateReuse::Stop() {
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
      published = published && (slot.bundle || slot.standing == StateStanding::kNone);
    }
  }
}

void StateReuse::Hydrate(const std::stop_token& stop) {
  for (Slot& slot : slots_) TryStore(slot);
  while (!stop.stop_requested()) {
    std::vector<HydrationStep> steps;
    for (Slot& slot : slots_) {
      if (!slot.installed) steps.push_back(Advance(slot, stop));
    }
    if (StartsWithout(steps)) {
      for (std::size_t i = 0, step = 0; i < slots_.size(); ++i) {
        if (!slots_[i].installed)
          Settle(slots_[i], std::get<hydration::GiveUp>(steps[step++]).reason);
      }
      break;
    }
    if (slots_[0].installed && slots_[1].installed) break;
    SleepUntil(Clock::now() + kAskAgain, stop);
  }
  clients_.clear();
  offered_.clear();
}

// Another pod of this node has fetched or made it, or an earlier one.
void StateReuse::TryStore(Slot& slot) {
  const auto hold = store_->HoldAll();
  if (!hold.ok()) return;
  const auto kept = store_->Find(slot.of, slot.fingerprint);
  if (kept.ok()) (void)Install(slot, *kept, "this node's store");  // Else it says so itself.
}

HydrationStep StateReuse::Advance(Slot& slot, const std::stop_token& stop) {
  const auto siblings = hooks_.siblings();
  HydrationView view{.pod = options_.pod,
                     .decided_at_us = options_.decided_at_us,
                     .operator_answered = siblings.has_value(),
                     .others = {},
                     .elapsed = std::chrono::duration_cast<milliseconds>(Clock::now() - began_)};
  for (const Sibling& sibling : siblings.value_or(std::vector<Sibling>())) {
    OtherStanding other{
        .pod = sibling.pod, .standing = std::nullopt, .decided_at_us = sibling.decided_at_us};
    if (slot.failed_pods.contains(sibling.pod)) {
      other.standing = StateStanding::kNone;
    } else if (http::Client* const client = ClientOf(sibling)) {
      auto answer = AskForBundle(*client, slot.of, slot.fingerprint);
      if (answer.ok()) {
        other.standing = answer->standing;
        if (answer->bundle) offered_[OfferKey(slot.of, sibling.pod)] = *std::move(answer->bundle);
      } else if (answer.status().code() == StatusCode::kInvalidArgument) {
        log::Warning("a peer's bundle is refused", {{"peer", sibling.pod},
                                                    {"class", ToString(slot.of)},
                                                    {"error", answer.status().ToString()}});
        slot.failed_pods.insert(sibling.pod);
        slot.last_problem = sibling.pod + ": " + answer.status().message();
        other.standing = StateStanding::kNone;
      }
    }
    view.others.push_back(std::move(other));
    if (view.others.back().standing == StateStanding::kHeld) break;  // It is taken.
  }
  HydrationStep step = NextHydrationStep(view, options_.limits);
  if (const auto* take = std::get_if<hydration::Take>(&step)) TakeFrom(slot, take->pod, stop);
  auto* const give_up = std::get_if<hydration::GiveUp>(&step);
  if (give_up != nullptr && !slot.last_problem.empty()) {
    give_up->reason += " (" + slot.last_problem + ")";
  }
  return step;
}

http::Client* StateReuse::ClientOf(const Sibling& sibling) {
  if (sibling.address.empty()) return nullptr;
  auto& client = clients_[sibling.pod + "@" + sibling.address];
  if (client == nullptr) {
    auto made = hooks_.dial(sibling);
    if (!made.ok()) return nullptr;
    client = *std::move(made);
  }
  return client.get();
}

void StateReuse::TakeFrom(Slot& slot, const std::string& pod, const std::stop_token& stop) {
  const auto siblings = hooks_.siblings().value_or(std::vector<Sibling>());
  const auto sibling =
      std::find_if(siblings.begin(), siblings.end(), [&](const auto& s) { return s.pod == pod; });
  const auto offered = offered_.find(OfferKey(slot.of, pod));
  http::Client* const client = sibling == siblings.end() ? nullptr : ClientOf(*sibling);
  if (client == nullptr || offered == offered_.end()) return;  // It has just gone.
  const auto started = Clock::now();
  Status status;
  std::uint64_t bytes = 0;
  if (const auto hold = store_->HoldAll(); hold.ok()) {
    const FetchOutcome fetched =
        FetchBundle(*client, *store_, offered->second, began_ + options_.transfer_deadline,
                    [&] { return stop.stop_requested(); });
    bytes = fetched.bytes;
    metrics_.CountStateBytes(bytes);
    status = fetched.status;
    if (status.ok()) status = store_->Put(offered->second);
    if (status.ok()) status = Install(slot, offered->second, pod);
  } else {
    status = hold.status();
  }
  store_->Trim({slots_[0].fingerprint, slots_[1].fingerprint});
  if (stop.stop_requested()) return;
  const double seconds = std::chrono::duration<double>(Clock::now() - started).count();
  log::Info("compile caches fetched", {{"peer", pod},
                                       {"class", ToString(slot.of)},
                                       {"bytes", bytes},
                                       {"seconds", seconds},
                                       {"error", status.ok() ? "" : status.ToString()}});
  if (status.ok()) return;
  slot.failed_pods.insert(pod);
  slot.last_problem = pod + ": " + status.message();
}

Status StateReuse::Install(Slot& slot, const Bundle& bundle, const std::string& from) {
  const auto installed = InstallCaches(*store_, bundle, options_.folder);
  if (!installed.ok()) {
    log::Warning(
        "compile caches not installed",
        {{"class", ToString(slot.of)}, {"from", from}, {"error", installed.status().ToString()}});
    metrics_.CountBundle(ToString(slot.of), "failed");
    return installed.status();
  }
  log::Info("compile caches installed", {{"class", ToString(slot.of)},
                                         {"from", from},
                                         {"fingerprint", bundle.fingerprint},
                                         {"files", installed->files},
                                         {"bytes", installed->bytes},
                                         {"rootsKept", installed->kept}});
  metrics_.CountBundle(ToString(slot.of), "installed");
  Hold(slot, bundle);
  {
    const std::scoped_lock lock(mutex_);
    slot.installed = true;
    slot.origin = "from " + from;
  }
  hooks_.on_change();
  return Status();
}

void StateReuse::Hold(Slot& slot, Bundle bundle) {
  const std::scoped_lock lock(mutex_);
  slot.files.clear();
  for (const BundleEntry& entry : bundle.entries) {
    if (!entry.is_link()) slot.files[entry.sha256] = entry.bytes;
  }
  slot.bundle = std::move(bundle);
  slot.standing = StateStanding::kHeld;
}

void StateReuse::Settle(Slot& slot, const std::string& why_not) {
  log::Info("the engine starts without installed compile caches",
            {{"class", ToString(slot.of)}, {"reason", why_not}});
  metrics_.CountBundle(ToString(slot.of), "cold");
  {
    const std::scoped_lock lock(mutex_);
    slot.standing = StateStanding::kCompiling;
    slot.origin = "none: " + why_not;
  }
  hooks_.on_change();
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
      if (!slot.bundle) slot.standing = StateStanding::kNone;
      return;
    }
    if (slot.bundle && WithoutDigests(slot.bundle->entries) == *look) return;
    auto published = PublishCaches(*store_, options_.folder,
                                   {.of = slot.of, .startup_plan = options_.startup_plan},
                                   slot.fingerprint, *look, slot.bundle.value_or(Bundle()));
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
  if (!slot.bundle) slot.standing = StateStanding::kNone;
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

StateAnswer StateReuse::Answer(CacheClass of, const std::string& fingerprint) const {
  const std::scoped_lock lock(mutex_);
  for (const Slot& slot : slots_) {
    if (slot.of != of || slot.fingerprint != fingerprint) continue;
    return {.standing = slot.standing,
            .decided_at_us = options_.decided_at_us,
            .bundle = slot.standing == StateStanding::kHeld ? slot.bundle : std::nullopt};
  }
  return {.standing = StateStanding::kNone,
          .decided_at_us = options_.decided_at_us,
          .bundle = std::nullopt};
}

Result<std::string> StateReuse::Read(const StateRead& read) const {
  {
    const std::scoped_lock lock(mutex_);
    const auto slot = std::find_if(slots_.begin(), slots_.end(), [&](const Slot& s) {
      return s.of == read.of && s.fingerprint == read.fingerprint && s.bundle;
    });
    if (slot == slots_.end()) return NotFound("this agent does not hold that bundle");
    for (const StatePiece& piece : read.pieces) {
      const auto file = slot->files.find(piece.sha256);
      if (file == slot->files.end()) {
        return NotFound("file " + piece.sha256 + " is not of that bundle (any more)");
      }
      if (piece.offset + piece.bytes > file->second) {
        return InvalidArgument("file " + piece.sha256 + " has " + std::to_string(file->second) +
                               " bytes");
      }
    }
  }
  std::string out;
  out.reserve(read.bytes());
  for (const StatePiece& piece : read.pieces) {
    ROUSE_ASSIGN_OR_RETURN(const std::string bytes,
                           store_->Read(piece.sha256, piece.offset, piece.bytes));
    out += bytes;
  }
  return out;
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
      return misses_.size() == 1 ? text : "rank " + std::to_string(rank) + ": " + text;
    }
  }
  return "";
}

}  // namespace rouse::agent
