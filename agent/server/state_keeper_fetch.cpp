// What a StateKeeper keeps for others.

#include <algorithm>

#include "agent/server/clock.h"
#include "agent/server/state_keeper.h"
#include "agent/state/bundle_fetch.h"
#include "common/log.h"

namespace rouse::agent {

Result<KeepAnswer> StateKeeper::Offer(const KeepRequest& offer) {
  if (leaving_) return Unavailable("agent " + options_.pod + " leaves: ask another");
  const auto live = hooks_.live();
  if (!live || FindKeeper(live->keepers, offer.pod) == nullptr) {
    return Unavailable("the operator has not named agent " + offer.pod + " to " + options_.pod +
                       " yet: ask again");
  }
  const BundleKey key{offer.of, offer.fingerprint};
  KeepRequest wanted = offer;
  wanted.used_at_us = std::min(offer.used_at_us, NowUs());
  if (const auto kept = kept_.Hear(key, wanted.copies, wanted.used_at_us)) {
    wanted.copies = kept->copies;
    wanted.used_at_us = kept->used_at_us;
    // On a folder of the node somebody may have removed some of it.
    if (kept->held->rank >= BundleRank{offer.bytes, offer.digest} &&
        IsWhole(*store_, *kept->held)) {
      return KeepAnswer{KeepStanding::kHeld, wanted.copies, wanted.used_at_us};
    }
  }
  const std::scoped_lock lock(mutex_);
  if (const auto failed = failed_.find({key, offer.pod});
      failed != failed_.end() && Clock::now() < failed->second.again) {
    return FailedPrecondition("agent " + options_.pod +
                              " could not fetch it: " + failed->second.problem);
  }
  if (pending_.size() >= kMaxKept ||
      !kept_.RoomFor(
          {.key = key, .bytes = offer.bytes, .entries = 0, .used_at_us = wanted.used_at_us})) {
    metrics_.CountCopy("refused");
    return Status(StatusCode::kResourceExhausted,
                  "agent " + options_.pod + " has no room for " + std::to_string(offer.bytes) +
                      " bytes: half of its store (agent.state.maxMib) is for copies");
  }
  pending_[key] = wanted;
  changed_.notify_all();
  return KeepAnswer{KeepStanding::kComing, wanted.copies, wanted.used_at_us};
}

void StateKeeper::FetchOne(const std::stop_token& stop) {
  KeepRequest offer;
  {
    const std::scoped_lock lock(mutex_);
    std::erase_if(failed_, [](const auto& entry) { return entry.second.again < Clock::now(); });
    if (leaving_) pending_.clear();
    if (pending_.empty()) return;
    offer = pending_.begin()->second;
  }
  const Status status = Fetch(offer, stop);
  const bool ended = leaving_ || stop.stop_requested();
  const BundleKey key{offer.of, offer.fingerprint};
  if (!status.ok() && !ended) {
    metrics_.CountCopy("failed");
    log::Warning("compile caches could not be copied", {{"peer", offer.pod},
                                                        {"class", ToString(offer.of)},
                                                        {"fingerprint", offer.fingerprint},
                                                        {"error", status.ToString()}});
  }
  const std::scoped_lock lock(mutex_);
  pending_.erase(key);
  if (!status.ok()) {
    failed_[{key, offer.pod}] = {.problem = status.message(),
                                 .again = Clock::now() + options_.recheck};
  }
}

Status StateKeeper::Fetch(const KeepRequest& offer, const std::stop_token& stop) {
  const auto live = hooks_.live();
  const Keeper* const from = live ? FindKeeper(live->keepers, offer.pod) : nullptr;
  http::Client* const client = from == nullptr ? nullptr : clients_.To(*from);
  if (client == nullptr) return Unavailable("agent " + offer.pod + " has gone");
  ROUSE_ASSIGN_OR_RETURN(StateAnswer answer, AskForBundle(*client, offer.of, offer.fingerprint));
  if (!answer.bundle) return NotFound("agent " + offer.pod + " does not hold it any more");
  const auto held = MakeHeld(*std::move(answer.bundle));
  const auto room = kept_.RoomFor({.key = held->key(),
                                   .bytes = held->rank.bytes,
                                   .entries = held->bundle.entries.size(),
                                   .used_at_us = offer.used_at_us});
  if (!room) return Status(StatusCode::kResourceExhausted, "there is no room for it any more");
  for (const BundleKey& key : *room) GiveUp(key, "displaced");
  {
    ROUSE_ASSIGN_OR_RETURN(const StateStore::Hold hold, store_->HoldAll());
    const FetchOutcome fetched =
        FetchBundle(*client, *store_, held->bundle, Clock::now() + options_.transfer_deadline,
                    [&] { return stop.stop_requested() || leaving_; });
    metrics_.CountCopiedBytes(fetched.bytes);
    ROUSE_RETURN_IF_ERROR(fetched.status);
    ROUSE_RETURN_IF_ERROR(store_->Put(held->bundle));
    kept_.Add({.held = held, .copies = offer.copies, .used_at_us = offer.used_at_us});
    Write();
  }
  metrics_.CountCopy("kept");
  log::Info("compile caches copied", {{"peer", offer.pod},
                                      {"class", ToString(offer.of)},
                                      {"fingerprint", offer.fingerprint},
                                      {"bytes", held->rank.bytes}});
  std::set<std::string> own;
  for (const auto& one : hooks_.own()) own.insert(one->bundle.fingerprint);
  store_->Trim(std::move(own));
  return Status();
}

// The files stay in the store until the room is needed.
void StateKeeper::GiveUp(const BundleKey& key, std::string_view why) {
  kept_.Remove(key);
  surplus_since_.erase(key);
  metrics_.CountCopy(why);
  log::Info("a copy of compile caches is given up",
            {{"class", ToString(key.of)}, {"fingerprint", key.fingerprint}, {"reason", why}});
  Write();
}

void StateKeeper::Write() {
  const KeptBundles::Size size = kept_.size();
  metrics_.SetKept(size.bundles, size.bytes);
  written_ = Clock::now();
  const Status written = kept_.Write();
  if (!written.ok()) {
    log::Warning("the list of kept bundles is not written", {{"error", written.ToString()}});
  }
}

}  // namespace rouse::agent
