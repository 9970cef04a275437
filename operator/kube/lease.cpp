#include "operator/kube/lease.h"

namespace rouse::kube {
namespace {

std::int64_t IntAt(const Json& object, const char* key, std::int64_t fallback, std::int64_t min,
                   std::int64_t max) {
  const auto it = object.find(key);
  if (it == object.end() || !it->is_number_integer()) return fallback;
  const auto number = it->get<std::int64_t>();
  return number < min || number > max ? fallback : number;
}

}  // namespace

Status Check(const LeaseTiming& timing) {
  using std::chrono::milliseconds;
  if (timing.retry <= milliseconds(0) || timing.renew_deadline <= timing.retry ||
      timing.duration <= timing.renew_deadline) {
    return InvalidArgument("leader election: retry (" + std::to_string(timing.retry.count()) +
                           " ms) must be less than the renew deadline (" +
                           std::to_string(timing.renew_deadline.count()) +
                           " ms), and that less than the lease duration (" +
                           std::to_string(timing.duration.count()) + " ms)");
  }
  if (timing.duration.count() % 1000 != 0) {
    return InvalidArgument("leader election: the lease duration must be whole seconds, got " +
                           std::to_string(timing.duration.count()) + " ms");
  }
  return {};
}

LeaseRecord DecodeLease(const Json& lease) {
  LeaseRecord record;
  record.resource_version = MetaString(lease, "resourceVersion");
  if (!lease.is_object()) return record;
  if (const auto meta = lease.find("metadata"); meta != lease.end() && meta->is_object()) {
    const auto notes = meta->find("annotations");
    if (notes != meta->end()) record.address = StringAt(*notes, kHolderAddress);
  }
  const auto spec = lease.find("spec");
  if (spec == lease.end() || !spec->is_object()) return record;
  record.holder = StringAt(*spec, "holderIdentity");
  record.renew_time = StringAt(*spec, "renewTime");
  // A day: nobody means to be locked out for longer.
  record.duration = std::chrono::seconds(IntAt(*spec, "leaseDurationSeconds", 15, 1, 86'400));
  record.transitions = IntAt(*spec, "leaseTransitions", 0, 0, INT32_MAX);
  return record;
}

void LeaseView::Observe(std::optional<LeaseRecord> fresh, Time now) {
  if (record == fresh) return;
  record = std::move(fresh);
  changed_at = now;
}

LeaseStep Decide(const LeaseView& view, const std::string& identity, const LeaseTiming& timing,
                 LeaseView::Time now) {
  if (view.leading) {
    const bool other = view.record && view.record->holder != identity;
    if (other || now >= view.renewed_at + timing.renew_deadline) return LeaseStep::kLost;
    return LeaseStep::kRenew;
  }
  if (!view.record || view.record->holder.empty() || view.record->holder == identity) {
    return LeaseStep::kAcquire;
  }
  return now >= view.changed_at + view.record->duration ? LeaseStep::kAcquire : LeaseStep::kWait;
}

}  // namespace rouse::kube
