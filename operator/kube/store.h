// The operator's copy of what the API server has, one store per resource.
//
// One informer writes; any thread reads. A reader gets shared pointers to immutable values, so it
// never sees a half-written object, and a relist becomes visible in one step. Values are what
// `project` makes of each JSON object: keep only what is used, a thousand pods as JSON trees take
// tens of megabytes.

#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "operator/kube/list_watch.h"
#include "operator/kube/resource.h"

namespace rouse::kube {

/// What an informer writes to.
class StoreSink {
 public:
  virtual ~StoreSink() = default;
  /// Takes over one event; called on the informer's thread.
  virtual void Take(StoreEvent event) = 0;
};

template <typename T>
class Store final : public StoreSink {
 public:
  using Value = std::shared_ptr<const T>;
  /// Makes the stored value; nullptr leaves the object out, as if it did not exist. Must not throw.
  using Project = std::function<Value(const Json& object)>;
  /// The values under which ByIndex finds an object.
  using Index = std::function<std::vector<std::string>(const T& value)>;
  /// Called on the informer's thread after the change is visible; `before` or `after` is nullptr.
  /// After a relist it is called for every object, changed or not. Must be quick: enqueue a key.
  using OnChange =
      std::function<void(const std::string& key, const Value& before, const Value& after)>;

  explicit Store(Project project, Index index = {}, OnChange on_change = {})
      : project_(std::move(project)), index_(std::move(index)), on_change_(std::move(on_change)) {}

  /// nullptr when there is none.
  Value Get(const std::string& key) const {
    std::shared_lock lock(mutex_);
    const auto it = current_.values.find(key);
    return it == current_.values.end() ? nullptr : it->second;
  }

  /// All values at one moment, in no particular order.
  std::vector<Value> All() const {
    std::shared_lock lock(mutex_);
    std::vector<Value> out;
    out.reserve(current_.values.size());
    for (const auto& [key, value] : current_.values) out.push_back(value);
    return out;
  }

  /// The values whose index has `entry`, at one moment, in no particular order.
  std::vector<Value> ByIndex(const std::string& entry) const {
    std::shared_lock lock(mutex_);
    std::vector<Value> out;
    if (const auto it = current_.index.find(entry); it != current_.index.end()) {
      out.reserve(it->second.size());
      for (const std::string& key : it->second) out.push_back(current_.values.at(key));
    }
    return out;
  }

  std::size_t size() const {
    std::shared_lock lock(mutex_);
    return current_.values.size();
  }

  /// True once the first full list is in.
  bool synced() const {
    std::shared_lock lock(mutex_);
    return synced_;
  }

  void Take(StoreEvent event) override {
    switch (event.kind) {
      case StoreEvent::Kind::kInitBegin:
        next_ = Table();
        return;
      case StoreEvent::Kind::kInitApply:
        if (Value value = project_(event.object)) {
          Put(next_, NameOf(event.object).Key(), std::move(value));
        }
        return;
      case StoreEvent::Kind::kInitDone:
        SwapIn();
        return;
      case StoreEvent::Kind::kApply:
        Change(NameOf(event.object).Key(), project_(event.object));
        return;
      case StoreEvent::Kind::kDelete:
        Change(NameOf(event.object).Key(), nullptr);
        return;
    }
  }

 private:
  struct Table {
    std::unordered_map<std::string, Value> values;
    std::unordered_map<std::string, std::unordered_set<std::string>> index;
  };

  void Put(Table& table, const std::string& key, Value value) {
    Remove(table, key);
    if (index_) {
      for (const std::string& entry : index_(*value)) table.index[entry].insert(key);
    }
    table.values.emplace(key, std::move(value));
  }

  Value Remove(Table& table, const std::string& key) {
    const auto it = table.values.find(key);
    if (it == table.values.end()) return nullptr;
    Value old = std::move(it->second);
    table.values.erase(it);
    if (index_) {
      for (const std::string& entry : index_(*old)) {
        const auto keys = table.index.find(entry);
        if (keys == table.index.end()) continue;
        keys->second.erase(key);
        if (keys->second.empty()) table.index.erase(keys);
      }
    }
    return old;
  }

  void Change(const std::string& key, Value after) {
    Value before;
    {
      std::unique_lock lock(mutex_);
      before = Remove(current_, key);
      if (after) Put(current_, key, after);
    }
    if (on_change_ && (before || after)) on_change_(key, before, after);
  }

  void SwapIn() {
    Table old;
    {
      std::unique_lock lock(mutex_);
      old = std::exchange(current_, std::exchange(next_, Table()));
      synced_ = true;
    }
    if (!on_change_) return;
    // Only this thread writes, so current_ may be read here without the lock.
    for (const auto& [key, after] : current_.values) {
      const auto it = old.values.find(key);
      on_change_(key, it == old.values.end() ? nullptr : it->second, after);
    }
    for (const auto& [key, before] : old.values) {
      if (!current_.values.contains(key)) on_change_(key, before, nullptr);
    }
  }

  const Project project_;
  const Index index_;
  const OnChange on_change_;
  mutable std::shared_mutex mutex_;
  Table current_;  ///< Guarded by mutex_; written by the informer's thread only.
  Table next_;     ///< Informer's thread only: the list that is being collected.
  bool synced_ = false;
};

/// A projection that keeps the whole object but for managedFields and the last-applied annotation.
std::shared_ptr<const Json> KeepWhole(const Json& object);

}  // namespace rouse::kube
