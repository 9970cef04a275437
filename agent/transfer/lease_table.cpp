#include "agent/transfer/lease_table.h"

#include <algorithm>

namespace rouse::transfer {

Status LeaseTable::Open(const std::string& id, const std::string& requester, TimePoint now) {
  if (leases_.contains(id)) {
    return Status(StatusCode::kAlreadyExists, "open lease " + id + ": it is open");
  }
  if (Count(now) >= limits_.max_leases) {
    return Status(StatusCode::kResourceExhausted,
                  "open a lease for " + requester + ": " + std::to_string(limits_.max_leases) +
                      " are open; try again when a pull has ended, or another source");
  }
  leases_[id] = {.requester = requester, .ends = now + limits_.duration};
  return {};
}

Status LeaseTable::Renew(const std::string& id, TimePoint now) {
  const auto lease = leases_.find(id);
  if (lease == leases_.end() || lease->second.ends <= now) {
    return NotFound("renew lease " + id + ": it has ended or never was; open a new one");
  }
  lease->second.ends = now + limits_.duration;
  return {};
}

Status LeaseTable::Close(const std::string& id, TimePoint now) {
  const auto lease = leases_.find(id);
  if (lease == leases_.end()) return NotFound("close lease " + id + ": it is not open");
  const bool lived = lease->second.ends > now;
  leases_.erase(lease);
  if (!lived) return NotFound("close lease " + id + ": it had ended by itself");
  return {};
}

std::vector<std::string> LeaseTable::Expire(TimePoint now) {
  std::vector<std::string> ended;
  std::erase_if(leases_, [&](const auto& entry) {
    if (entry.second.ends > now) return false;
    ended.push_back(entry.second.requester);
    return true;
  });
  return ended;
}

bool LeaseTable::Lives(const std::string& id, TimePoint now) const {
  const auto lease = leases_.find(id);
  return lease != leases_.end() && lease->second.ends > now;
}

std::vector<std::string> LeaseTable::Clear(TimePoint now) {
  std::vector<std::string> lived;
  for (const auto& [id, lease] : leases_) {
    if (lease.ends > now) lived.push_back(lease.requester);
  }
  leases_.clear();
  return lived;
}

std::size_t LeaseTable::Count(TimePoint now) const {
  return static_cast<std::size_t>(std::count_if(
      leases_.begin(), leases_.end(), [&](const auto& entry) { return entry.second.ends > now; }));
}

}  // namespace rouse::transfer
