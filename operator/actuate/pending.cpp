#include "operator/actuate/pending.h"

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <optional>

namespace rouse::actuate {

bool IsAsNew(const plan::Instance& shown, const plan::Instance& written) {
  const auto number = [](const std::string& text) -> std::optional<std::uint64_t> {
    std::uint64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (text.empty() || error != std::errc() || end != text.data() + text.size()) {
      return std::nullopt;
    }
    return value;
  };
  const auto a = number(shown.resource_version);
  const auto b = number(written.resource_version);
  return !a || !b || *a >= *b;
}

void Pending::Wrote(const std::string& key, const plan::Instance& pod,
                    const std::function<bool()>& known) {
  std::lock_guard lock(mutex_);
  if (known()) return;
  entries_[key].written.insert_or_assign(pod.uid, std::pair(pod, clock_()));
}

void Pending::Deleted(const std::string& key, const std::string& uid) {
  std::lock_guard lock(mutex_);
  entries_[key].deleted[uid] = clock_();
}

void Pending::Taken(const std::string& key, const std::string& name) {
  std::lock_guard lock(mutex_);
  entries_[key].taken[name] = clock_();
}

void Pending::WroteEndpoint(const std::string& key, const plan::Endpoint& endpoint) {
  std::lock_guard lock(mutex_);
  entries_[key].endpoint = std::pair(endpoint, clock_());
}

void Pending::EndpointTaken(const std::string& key) {
  std::lock_guard lock(mutex_);
  entries_[key].endpoint_taken = clock_();
}

void Pending::Seen(const std::string& key, const std::string& uid, const plan::Instance* after) {
  std::lock_guard lock(mutex_);
  const auto it = entries_.find(key);
  if (it == entries_.end()) return;
  const auto written = it->second.written.find(uid);
  if (written != it->second.written.end() &&
      (after == nullptr || IsAsNew(*after, written->second.first))) {
    it->second.written.erase(written);
  }
  if (after == nullptr || after->deleting) it->second.deleted.erase(uid);
}

void Pending::Expire(Entry& entry, Time now) const {
  std::erase_if(entry.written, [&](const auto& e) { return now - e.second.second > lifetime_; });
  std::erase_if(entry.deleted, [&](const auto& e) { return now - e.second > lifetime_; });
  std::erase_if(entry.taken, [&](const auto& e) { return now - e.second > lifetime_; });
  if (entry.endpoint && now - entry.endpoint->second > lifetime_) entry.endpoint.reset();
  if (entry.endpoint_taken && now - *entry.endpoint_taken > lifetime_) entry.endpoint_taken.reset();
}

void Pending::AddTo(const std::string& key, plan::Observed& observed) {
  std::lock_guard lock(mutex_);
  const auto it = entries_.find(key);
  if (it == entries_.end()) return;
  Expire(it->second, clock_());
  for (const auto& [uid, entry] : it->second.written) {
    const plan::Instance& written = entry.first;
    const auto shown = std::find_if(observed.instances.begin(), observed.instances.end(),
                                    [&](const plan::Instance& i) { return i.uid == written.uid; });
    if (shown != observed.instances.end()) {
      if (!IsAsNew(*shown, written)) *shown = written;
    } else if (written.owner_uid == observed.service.metadata.uid) {
      observed.instances.push_back(written);
    }
  }
  for (plan::Instance& instance : observed.instances) {
    if (it->second.deleted.contains(instance.uid)) instance.deleting = true;
  }
  for (const auto& [name, since] : it->second.taken) observed.taken_names.push_back(name);
  observed.endpoint_taken = it->second.endpoint_taken.has_value();
  if (it->second.endpoint) {
    // Whatever the cache shows of that Service, the same one or none, is older or the same.
    const plan::Endpoint& written = it->second.endpoint->first;
    if (observed.endpoint == written) {
      it->second.endpoint.reset();
    } else if (!observed.endpoint || observed.endpoint->uid == written.uid) {
      observed.endpoint = written;
    }
  }
  if (it->second.empty()) entries_.erase(it);
}

void Pending::Forget(const std::string& key) {
  std::lock_guard lock(mutex_);
  entries_.erase(key);
}

}  // namespace rouse::actuate
