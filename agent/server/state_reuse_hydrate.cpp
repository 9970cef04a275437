// How a StateReuse puts caches in place before the engine starts.

#include <algorithm>

#include "agent/server/state_reuse.h"
#include "agent/state/bundle_fetch.h"
#include "common/log.h"
#include "common/stoppable_sleep.h"

namespace rouse::agent {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr milliseconds kAskAgain{300};
constexpr milliseconds kAskKeepersAgain{3'000};

std::string OfferKey(CacheClass of, const std::string& pod) {
  return std::string(ToString(of)) + " " + pod;
}

}  // namespace

void StateReuse::Hydrate(const std::stop_token& stop) {
  for (Slot& slot : slots_) TryStore(slot);
  while (!stop.stop_requested()) {
    std::vector<HydrationStep> steps;
    for (Slot& slot : slots_) {
      if (!slot.installed) steps.push_back(Advance(slot, stop));
    }
    if (StartsWithout(steps)) {
      auto step = steps.begin();
      for (Slot& slot : slots_) {
        if (slot.installed) continue;
        metrics_.CountLookup(ToString(slot.of), "none");
        Settle(slot, std::get<hydration::GiveUp>(*step++).reason);
      }
      break;
    }
    if (slots_[0].installed && slots_[1].installed) break;
    SleepUntil(Clock::now() + kAskAgain, stop);
  }
  clients_.Clear();
  offered_.clear();
}

// Another pod of this node has fetched or made it, or an earlier one.
void StateReuse::TryStore(Slot& slot) {
  const auto hold = store_->HoldAll();
  if (!hold.ok()) return;
  const auto kept = store_->Find(slot.of, slot.fingerprint);
  if (!kept.ok() || !Install(slot, *kept, "this node's store").ok()) return;
  metrics_.CountLookup(ToString(slot.of), "store");
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
    } else if (http::Client* const client = clients_.To(sibling.pod, sibling.address)) {
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
  if (const auto* take = std::get_if<hydration::Take>(&step)) {
    const auto sibling = std::find_if(siblings->begin(), siblings->end(),
                                      [&](const auto& s) { return s.pod == take->pod; });
    http::Client* const client = clients_.To(sibling->pod, sibling->address);
    TakeFrom(slot, take->pod, *client, offered_.at(OfferKey(slot.of, take->pod)), stop);
    if (slot.installed) metrics_.CountLookup(ToString(slot.of), "instance");
    return step;
  }
  if (siblings) {
    if (const auto taken = TakeFromKeepers(slot, *siblings, stop)) return *taken;
  }
  auto* const give_up = std::get_if<hydration::GiveUp>(&step);
  if (give_up != nullptr && !slot.last_problem.empty()) {
    give_up->reason += " (" + slot.last_problem + ")";
  }
  return step;
}

// Nobody of this launch has it yet. Whoever waits for one that compiles asks again now and then:
// others of an equal fingerprint may have made it.
std::optional<hydration::Take> StateReuse::TakeFromKeepers(Slot& slot,
                                                           const std::vector<Sibling>& asked,
                                                           const std::stop_token& stop) {
  const auto now = Clock::now();
  const auto live = hooks_.keepers();
  if (!live || now < slot.ask_keepers_at) return std::nullopt;
  slot.ask_keepers_at = now + kAskKeepersAgain;
  const std::vector<Keeper> order =
      WhomToAsk(slot.fingerprint, live->keepers, live->copies, options_.pod);
  while (!stop.stop_requested()) {
    std::set<std::string> without = slot.failed_pods;
    for (const Sibling& sibling : asked) without.insert(sibling.pod);
    const auto found = FindBundle(order, slot.of, slot.fingerprint, without,
                                  [this](const Keeper& keeper) { return clients_.To(keeper); });
    if (!found) break;
    const Keeper& holder = found->holder;
    TakeFrom(slot, holder.pod, *clients_.To(holder), found->bundle, stop);
    if (slot.installed) {
      metrics_.CountLookup(ToString(slot.of), "keeper");
      return hydration::Take{holder.pod};
    }
    slot.failed_pods.insert(holder.pod);  // Also where the store could not be held.
  }
  return std::nullopt;
}

void StateReuse::TakeFrom(Slot& slot, const std::string& pod, http::Client& client,
                          const Bundle& bundle, const std::stop_token& stop) {
  const auto started = Clock::now();
  Status status;
  std::uint64_t bytes = 0;
  if (const auto hold = store_->HoldAll(); hold.ok()) {
    const FetchOutcome fetched =
        FetchBundle(client, *store_, bundle, began_ + options_.transfer_deadline,
                    [&] { return stop.stop_requested(); });
    bytes = fetched.bytes;
    metrics_.CountStateBytes(bytes);
    status = fetched.status;
    if (status.ok()) status = store_->Put(bundle);
    if (status.ok()) status = Install(slot, bundle, pod);
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

}  // namespace rouse::agent
