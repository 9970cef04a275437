#include "agent/state/kept_bundles.h"

#include <algorithm>
#include <utility>

#include "agent/state/kept_list.h"

namespace rouse::agent {

KeptBundles::KeptBundles(const StateStore& store, StateStoreOptions options)
    : options_(std::move(options)) {
  // Else Write() looks again, and says why it cannot.
  if (auto known = KeptByAnybody(options_.folder); known.ok()) by_anybody_ = *std::move(known);
  for (const KeptEntry& entry : ReadKept(options_.folder, options_.owner)) {
    auto bundle = store.Find(entry.key.of, entry.key.fingerprint);
    if (!bundle.ok()) continue;
    kept_[entry.key] = {.held = MakeHeld(*std::move(bundle)),
                        .copies = entry.copies,
                        .used_at_us = entry.used_at_us};
  }
}

std::shared_ptr<const HeldBundle> KeptBundles::Find(const BundleKey& key) const {
  const std::scoped_lock lock(mutex_);
  const auto kept = kept_.find(key);
  return kept == kept_.end() ? nullptr : kept->second.held;
}

std::vector<KeptBundle> KeptBundles::All() const {
  const std::scoped_lock lock(mutex_);
  std::vector<KeptBundle> all;
  for (const auto& [key, kept] : kept_) all.push_back(kept);
  return all;
}

std::optional<KeptBundle> KeptBundles::Hear(const BundleKey& key, std::uint32_t copies,
                                            std::int64_t used_at_us) {
  const std::scoped_lock lock(mutex_);
  const auto kept = kept_.find(key);
  if (kept == kept_.end()) return std::nullopt;
  if (used_at_us > kept->second.used_at_us) {
    kept->second.used_at_us = used_at_us;
    kept->second.copies = copies;
  }
  return kept->second;
}

std::optional<std::vector<BundleKey>> KeptBundles::RoomFor(const Wanted& wanted) const {
  const std::scoped_lock lock(mutex_);
  const std::uint64_t limit = options_.max_bytes / kShareOfStore;
  std::uint64_t bytes = wanted.bytes;
  std::size_t entries = wanted.entries;
  std::size_t count = 1;
  std::vector<std::pair<std::int64_t, BundleKey>> out_of_use;
  for (const auto& [key, kept] : kept_) {
    if (key == wanted.key) continue;
    bytes += kept.held->rank.bytes;
    entries += kept.held->bundle.entries.size();
    ++count;
    if (kept.used_at_us < wanted.used_at_us - kOutOfUseUs) {
      out_of_use.emplace_back(kept.used_at_us, key);
    }
  }
  for (const auto& [fingerprint, others] : by_anybody_) {
    const bool ours = fingerprint == wanted.key.fingerprint ||
                      kept_.contains({CacheClass::kMatched, fingerprint}) ||
                      kept_.contains({CacheClass::kReusable, fingerprint});
    if (!ours) bytes += others;
  }
  std::sort(out_of_use.begin(), out_of_use.end());
  std::vector<BundleKey> out;
  const auto too_much = [&] {
    return bytes > limit || entries > kMaxKeptEntries || count > kMaxKept;
  };
  for (const auto& [used, key] : out_of_use) {
    if (!too_much()) break;
    const HeldBundle& held = *kept_.at(key).held;
    bytes -= held.rank.bytes;
    entries -= held.bundle.entries.size();
    --count;
    out.push_back(key);
  }
  if (too_much()) return std::nullopt;
  return out;
}

void KeptBundles::Add(KeptBundle kept) {
  const std::scoped_lock lock(mutex_);
  const BundleKey key = kept.held->key();
  kept_[key] = std::move(kept);
}

void KeptBundles::Remove(const BundleKey& key) {
  const std::scoped_lock lock(mutex_);
  kept_.erase(key);
}

Status KeptBundles::Write() {
  std::vector<KeptEntry> list;
  {
    const std::scoped_lock lock(mutex_);
    for (const auto& [key, kept] : kept_) {
      list.push_back({.key = key,
                      .bytes = kept.held->rank.bytes,
                      .copies = kept.copies,
                      .used_at_us = kept.used_at_us});
    }
  }
  const Status written = WriteKept(options_.folder, options_.owner, list);
  auto by_anybody = KeptByAnybody(options_.folder);
  if (!by_anybody.ok()) return written.ok() ? by_anybody.status() : written;
  const std::scoped_lock lock(mutex_);
  by_anybody_ = *std::move(by_anybody);
  return written;
}

KeptBundles::Size KeptBundles::size() const {
  const std::scoped_lock lock(mutex_);
  Size size{.bundles = kept_.size(), .bytes = 0};
  for (const auto& [key, kept] : kept_) size.bytes += kept.held->rank.bytes;
  return size;
}

}  // namespace rouse::agent
