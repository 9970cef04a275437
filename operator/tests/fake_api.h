// An Api in memory, for tests of what calls it: keeps objects with versions and uids, knows
// conflicts, and fails on demand. Not a model of the API server: nothing is validated or defaulted.

#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "operator/kube/api.h"

namespace rouse::kube {

class FakeApi : public Api {
 public:
  /// Called before each call with "get", "create", ... and the object's kind and name. A Status
  /// that is not ok is the call's answer; it may also sleep.
  using Hook = std::function<Status(const std::string& verb, const std::string& object)>;

  void SetHook(Hook hook) {
    std::lock_guard lock(mutex_);
    hook_ = std::move(hook);
  }
  /// The next answer of `verb` is lost: the call takes effect and says Unavailable.
  void LoseAnswer(const std::string& verb) {
    std::lock_guard lock(mutex_);
    lost_.push_back(verb);
  }
  std::vector<std::string> calls() {
    std::lock_guard lock(mutex_);
    return calls_;
  }
  std::vector<Json> Objects(const Resource& resource) {
    std::lock_guard lock(mutex_);
    std::vector<Json> out;
    for (const auto& [key, object] : objects_) {
      if (key.first == resource.plural) out.push_back(object);
    }
    return out;
  }
  /// Writes without hooks or conditions, as another client would.
  void Put(const Resource& resource, Json object) {
    std::lock_guard lock(mutex_);
    Store(resource, std::move(object));
  }
  void Erase(const Resource& resource, const ObjectName& name) {
    std::lock_guard lock(mutex_);
    objects_.erase({resource.plural, name.Key()});
  }

  Result<Json> Get(const Resource& resource, const ObjectName& name) override {
    return Do("get", resource, name, [&]() -> Result<Json> {
      const auto it = objects_.find({resource.plural, name.Key()});
      if (it == objects_.end()) return NotFound(Describe(resource, name));
      return it->second;
    });
  }
  Result<ObjectList> List(const Resource& resource, const std::string& ns,
                          const ListOptions&) override {
    auto all = Do("list", resource, {ns, "*"}, [&]() -> Result<Json> {
      Json items = Json::array();
      for (const auto& [key, object] : objects_) {
        if (key.first == resource.plural && (ns.empty() || NameOf(object).ns == ns)) {
          items.push_back(object);
        }
      }
      return items;
    });
    if (!all.ok()) return all.status();
    return ObjectList{all->get<std::vector<Json>>(), std::to_string(version_)};
  }
  Result<Json> Create(const Resource& resource, const Json& object) override {
    return Do("create", resource, NameOf(object), [&]() -> Result<Json> {
      if (objects_.contains({resource.plural, NameOf(object).Key()})) {
        return Status(StatusCode::kAlreadyExists, Describe(resource, NameOf(object)));
      }
      return Store(resource, object);
    });
  }
  Result<Json> Update(const Resource& resource, const Json& object) override {
    return Do("update", resource, NameOf(object), [&]() -> Result<Json> {
      const auto it = objects_.find({resource.plural, NameOf(object).Key()});
      if (it == objects_.end()) return NotFound(Describe(resource, NameOf(object)));
      const std::string wanted = MetaString(object, "resourceVersion");
      if (!wanted.empty() && wanted != MetaString(it->second, "resourceVersion")) {
        return Status(StatusCode::kConflict, Describe(resource, NameOf(object)));
      }
      return Store(resource, object);
    });
  }
  Result<Json> Apply(const Resource& resource, const Json& object, const ApplyOptions&) override {
    return Do("apply", resource, NameOf(object), [&]() -> Result<Json> {
      Json merged = objects_[{resource.plural, NameOf(object).Key()}];
      merged.merge_patch(object);
      return Store(resource, merged);
    });
  }
  Result<Json> MergePatch(const Resource& resource, const ObjectName& name, const Json& patch,
                          const PatchOptions&) override {
    return Do("patch", resource, name, [&]() -> Result<Json> {
      const auto it = objects_.find({resource.plural, name.Key()});
      if (it == objects_.end()) return NotFound(Describe(resource, name));
      const std::string wanted = MetaString(patch, "resourceVersion");
      if (!wanted.empty() && wanted != MetaString(it->second, "resourceVersion")) {
        return Status(StatusCode::kConflict, Describe(resource, name));
      }
      Json merged = it->second;
      merged.merge_patch(patch);
      return Store(resource, merged);
    });
  }
  Status Delete(const Resource& resource, const ObjectName& name,
                const DeleteOptions& options) override {
    return Do("delete", resource, name,
              [&]() -> Result<Json> {
                const auto it = objects_.find({resource.plural, name.Key()});
                if (it == objects_.end()) return NotFound(Describe(resource, name));
                if (!options.uid.empty() && options.uid != MetaString(it->second, "uid")) {
                  return Status(StatusCode::kConflict, Describe(resource, name));
                }
                objects_.erase(it);
                return Json::object();
              })
        .status();
  }

 private:
  Json Store(const Resource& resource, Json object) {
    Json& slot = objects_[{resource.plural, NameOf(object).Key()}];
    ++version_;
    const std::string uid = MetaString(slot, "uid");
    object["metadata"]["uid"] = uid.empty() ? "uid-" + std::to_string(version_) : uid;
    object["metadata"]["resourceVersion"] = std::to_string(version_);
    slot = object;
    return slot;
  }

  Result<Json> Do(const std::string& verb, const Resource& resource, const ObjectName& name,
                  const std::function<Result<Json>()>& act) {
    Hook hook;
    {
      std::lock_guard lock(mutex_);
      calls_.push_back(verb + " " + Describe(resource, name));
      hook = hook_;
    }
    if (hook) ROUSE_RETURN_IF_ERROR(hook(verb, Describe(resource, name)));
    std::lock_guard lock(mutex_);
    Result<Json> result = act();
    if (!lost_.empty() && lost_.front() == verb) {
      lost_.erase(lost_.begin());
      return Unavailable("fake: the answer was lost");
    }
    return result;
  }

  std::mutex mutex_;
  Hook hook_;
  std::vector<std::string> lost_;
  std::vector<std::string> calls_;
  std::map<std::pair<std::string, std::string>, Json> objects_;
  std::int64_t version_ = 0;
};

}  // namespace rouse::kube
