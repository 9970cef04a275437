#include "operator/actuate/loads.h"

#include <algorithm>

namespace rouse::actuate {

void Loads::Put(const std::string& uid, const plan::ToldLoad& told) {
  std::lock_guard lock(mutex_);
  loads_[uid] = told;
  if (loads_.size() < prune_at_) return;
  std::erase_if(loads_,
                [&](const auto& each) { return told.at - each.second.at > each.second.kept; });
  prune_at_ = std::max<std::size_t>(64, 2 * loads_.size());
}

std::optional<plan::ToldLoad> Loads::Get(const std::string& uid) const {
  std::lock_guard lock(mutex_);
  const auto it = loads_.find(uid);
  return it == loads_.end() ? std::nullopt : std::optional(it->second);
}

std::size_t Loads::size() const {
  std::lock_guard lock(mutex_);
  return loads_.size();
}

}  // namespace rouse::actuate
