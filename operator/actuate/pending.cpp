#include "operator/actuate/pending.h"

#include <algorithm>

namespace rouse::actuate {

void Pending::Created(const std::string& key, const plan::Instance& pod,
                      const std::function<bool()>& known) {
  std::lock_guard lock(mutex_);
  if (known()) return;
  entries_[key].created.insert_or_assign(pod.uid, std::pair(pod, clock_()));
}

void Pending::Deleted(const std::string& key, const std::string& uid) {
  std::lock_guard lock(mutex_);
  entries_[key].deleted[uid] = clock_();
}

void Pending::Taken(const std::string& key, const std::string& name) {
  std::lock_guard lock(mutex_);
  entries_[key].taken[name] = clock_();
}

void Pending::Seen(const std::string& key, const std::string& uid, const plan::Instance* after) {
  std::lock_guard lock(mutex_);
  const auto it = entries_.find(key);
  if (it == entries_.end()) return;
  it->second.created.erase(uid);
  if (after == nullptr || after->deleting) it->second.deleted.erase(uid);
}

void Pending::Expire(Entry& entry, Time now) const {
  std::erase_if(entry.created, [&](const auto& e) { return now - e.second.second > lifetime_; });
  std::erase_if(entry.deleted, [&](const auto& e) { return now - e.second > lifetime_; });
  std::erase_if(entry.taken, [&](const auto& e) { return now - e.second > lifetime_; });
}

void Pending::AddTo(const std::string& key, plan::Observed& observed) {
  std::lock_guard lock(mutex_);
  const auto it = entries_.find(key);
  if (it == entries_.end()) return;
  Expire(it->second, clock_());
  for (plan::Instance& instance : observed.instances) {
    if (it->second.deleted.contains(instance.uid)) instance.deleting = true;
  }
  for (const auto& [uid, created] : it->second.created) {
    const bool shown =
        std::any_of(observed.instances.begin(), observed.instances.end(),
                    [&](const plan::Instance& i) { return i.uid == created.first.uid; });
    if (!shown && created.first.owner_uid == observed.service.metadata.uid) {
      observed.instances.push_back(created.first);
    }
  }
  for (const auto& [name, since] : it->second.taken) observed.taken_names.push_back(name);
  if (it->second.created.empty() && it->second.deleted.empty() && it->second.taken.empty()) {
    entries_.erase(it);
  }
}

void Pending::Forget(const std::string& key) {
  std::lock_guard lock(mutex_);
  entries_.erase(key);
}

}  // namespace rouse::actuate
