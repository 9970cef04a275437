#include <algorithm>
#include <cstdio>

#include "operator/kube/events.h"

namespace rouse::kube {
namespace {

constexpr std::size_t kMaxNote = 1024;
constexpr std::size_t kMaxWord = 128;
constexpr std::size_t kMaxName = 253;

// At most `limit` bytes, never ending in the middle of a UTF-8 character.
std::string Cut(const std::string& text, std::size_t limit) {
  if (text.size() <= limit) return text;
  std::size_t end = limit;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return text.substr(0, end);
}

std::string KeyOf(const Event& event) {
  std::string key = event.type == EventType::kWarning ? "W" : "N";
  for (const std::string& part :
       {StringAt(event.regarding, "kind"), StringAt(event.regarding, "namespace"),
        StringAt(event.regarding, "name"), StringAt(event.regarding, "uid"), event.reason,
        event.action, event.note}) {
    key += '\0';
    key += part;
  }
  return key;
}

ObjectName NameFor(const Event& event, std::uint64_t unique) {
  char suffix[20];
  std::snprintf(suffix, sizeof suffix, ".%016llx", static_cast<unsigned long long>(unique));
  std::string ns = StringAt(event.regarding, "namespace");
  std::string name = StringAt(event.regarding, "name");
  if (name.empty()) name = "unknown";
  return {ns.empty() ? "default" : ns,
          Cut(name, kMaxName - std::char_traits<char>::length(suffix)) + suffix};
}

}  // namespace

Json ReferenceTo(const Resource& resource, const ObjectName& name, const std::string& uid) {
  Json reference = {
      {"apiVersion", resource.ApiVersion()}, {"kind", resource.kind}, {"name", name.name}};
  if (!name.ns.empty()) reference["namespace"] = name.ns;
  if (!uid.empty()) reference["uid"] = uid;
  return reference;
}

Json ReferenceTo(const Resource& resource, const Json& object) {
  return ReferenceTo(resource, NameOf(object), MetaString(object, "uid"));
}

std::vector<EventWrite> EventAggregator::Add(const Event& event, WallTime now,
                                             std::uint64_t unique) {
  FollowClock(now);
  std::vector<EventWrite> writes;
  const std::string key = KeyOf(event);
  if (const auto found = by_key_.find(key); found != by_key_.end()) {
    const auto entry = found->second;
    if (now - entry->last_seen < options_.window) {
      ++entry->count;
      entry->last_seen = now;
      entries_.splice(entries_.begin(), entries_, entry);
      if (now - entry->last_written >= options_.series_every) {
        writes.push_back(SeriesWrite(*entry, now));
      }
      return writes;
    }
    Forget(entry, now, &writes);
  }

  Entry entry{.key = key, .name = NameFor(event, unique), .last_seen = now, .last_written = now};
  writes.push_back(
      {.create = true,
       .name = entry.name,
       .body = {{"apiVersion", Events().ApiVersion()},
                {"kind", Events().kind},
                {"metadata", {{"name", entry.name.name}, {"namespace", entry.name.ns}}},
                {"eventTime", MicroTime(now)},
                {"reportingController", options_.controller},
                {"reportingInstance",
                 Cut(options_.instance.empty() ? options_.controller : options_.instance,
                     kMaxWord)},
                {"type", event.type == EventType::kWarning ? "Warning" : "Normal"},
                {"reason", Cut(event.reason, kMaxWord)},
                {"action", Cut(event.action, kMaxWord)},
                {"note", Cut(event.note, kMaxNote)},
                {"regarding", event.regarding}},
       .key = key});
  entries_.push_front(std::move(entry));
  by_key_[key] = entries_.begin();
  while (entries_.size() > std::max<std::size_t>(options_.remembered, 1)) {
    Forget(std::prev(entries_.end()), now, &writes);
  }
  return writes;
}

std::vector<EventWrite> EventAggregator::Due(WallTime now, bool all) {
  FollowClock(now);
  std::vector<EventWrite> writes;
  for (Entry& entry : entries_) {
    if (entry.count == entry.written) continue;
    if (all || now - entry.last_written >= options_.series_every) {
      writes.push_back(SeriesWrite(entry, now));
    }
  }
  // Nothing is said about these any more: a repetition would be a new Event anyway.
  while (!entries_.empty() && now - entries_.back().last_seen >= options_.window) {
    Forget(std::prev(entries_.end()), now, &writes);
  }
  return writes;
}

std::optional<WallTime> EventAggregator::NextDue() const {
  std::optional<WallTime> next;
  for (const Entry& entry : entries_) {
    if (entry.count == entry.written) continue;
    const WallTime due = entry.last_written + options_.series_every;
    if (!next || due < *next) next = due;
  }
  return next;
}

// Set back, the clock would hold counts back for as long as it went, and join what is far apart.
void EventAggregator::FollowClock(WallTime now) {
  for (Entry& entry : entries_) {
    entry.last_seen = std::min(entry.last_seen, now);
    entry.last_written = std::min(entry.last_written, now);
  }
}

void EventAggregator::Lost(const std::string& key) {
  const auto found = by_key_.find(key);
  if (found == by_key_.end()) return;
  entries_.erase(found->second);
  by_key_.erase(found);
}

EventWrite EventAggregator::SeriesWrite(Entry& entry, WallTime now) {
  entry.written = entry.count;
  entry.last_written = now;
  return {.create = false,
          .name = entry.name,
          .body = {{"series",
                    {{"count", entry.count}, {"lastObservedTime", MicroTime(entry.last_seen)}}}},
          .key = entry.key};
}

void EventAggregator::Forget(std::list<Entry>::iterator entry, WallTime now,
                             std::vector<EventWrite>* writes) {
  if (entry->count != entry->written) writes->push_back(SeriesWrite(*entry, now));
  by_key_.erase(entry->key);
  entries_.erase(entry);
}

}  // namespace rouse::kube
