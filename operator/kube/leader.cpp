#include "operator/kube/leader.h"

#include <pthread.h>

#include <cstdio>
#include <random>
#include <utility>

#include "common/log.h"
#include "operator/kube/micro_time.h"

namespace rouse::kube {
namespace {

using std::chrono::steady_clock;
using std::chrono::system_clock;

}  // namespace

std::string UniqueIdentity(const std::string& prefix) {
  std::random_device random;
  char suffix[20];
  std::snprintf(suffix, sizeof suffix, "_%08x%08x", random(), random());
  return prefix + suffix;
}

Result<std::unique_ptr<LeaderElector>> LeaderElector::Start(Api& api, LeaderOptions options) {
  ROUSE_RETURN_IF_ERROR(Check(options.timing));
  if (options.identity.empty()) return InvalidArgument("leader election: the identity is empty");
  if (options.lease.ns.empty() || options.lease.name.empty()) {
    return InvalidArgument("leader election: the lease needs a namespace and a name");
  }
  return std::unique_ptr<LeaderElector>(new LeaderElector(api, std::move(options)));
}

LeaderElector::LeaderElector(Api& api, LeaderOptions options)
    : api_(api), options_(std::move(options)), thread_([this] {
        pthread_setname_np(pthread_self(), "leader-elector");
        Run();
      }) {}

LeaderElector::~LeaderElector() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

bool LeaderElector::leading() const {
  if (!leading_) return false;
  const steady_clock::time_point renewed{steady_clock::duration(renewed_ticks_.load())};
  return steady_clock::now() < renewed + options_.timing.renew_deadline;
}

std::string LeaderElector::holder() const {
  std::lock_guard lock(mutex_);
  return holder_;
}

std::string LeaderElector::holder_address() const {
  std::lock_guard lock(mutex_);
  return holder_.empty() ? std::string() : address_;
}

Status LeaderElector::Confirm(std::chrono::milliseconds age) {
  std::unique_lock lock(mutex_);
  const steady_clock::time_point renewed{steady_clock::duration(renewed_ticks_.load())};
  if (leading() && answer_.ok() && steady_clock::now() <= renewed + age) return {};
  const std::uint64_t mine = ++asked_;
  changed_.notify_all();
  changed_.wait(lock, [&] { return answered_ >= mine || ended_; });
  if (answered_ >= mine) return answer_;
  return Unavailable("lease " + options_.lease.Key() + ": the leadership has ended");
}

std::uint64_t LeaderElector::Asked() const {
  std::lock_guard lock(mutex_);
  return asked_;
}

void LeaderElector::Answer(std::uint64_t asked, const Status& held) {
  {
    std::lock_guard lock(mutex_);
    answered_ = asked;
    answer_ = held;
  }
  changed_.notify_all();
}

void LeaderElector::Run() {
  do {
    const std::uint64_t asked = Asked();  // Those who ask from now on want a later attempt.
    Answer(asked, Attempt());
  } while (!lost_ && Sleep());
  {
    std::lock_guard lock(mutex_);
    ended_ = true;
  }
  changed_.notify_all();
  if (view_.leading) Release();
}

Status LeaderElector::Attempt() {
  if (!fresh_) Read();
  fresh_ = false;
  switch (Decide(view_, options_.identity, options_.timing, steady_clock::now())) {
    case LeaseStep::kWait:
      break;
    case LeaseStep::kLost:
      Lose();
      break;
    case LeaseStep::kAcquire:
      if (!known_) break;
      [[fallthrough]];
    case LeaseStep::kRenew: {
      const Status written = Write(options_.identity);
      fresh_ = written.ok();
      return written;
    }
  }
  return Unavailable("lease " + options_.lease.Key() + ": not held by this process");
}

void LeaderElector::Read() {
  auto lease = api_.Get(Leases(), options_.lease);
  const auto now = steady_clock::now();
  if (lease.ok()) {
    lease_ = *std::move(lease);
    view_.Observe(DecodeLease(lease_), now);
    known_ = true;
  } else if (lease.status().code() == StatusCode::kNotFound) {
    lease_ = nullptr;
    view_.Observe(std::nullopt, now);
    known_ = true;
  } else {
    known_ = false;
    NoteError(lease.status());
  }
  std::lock_guard lock(mutex_);
  holder_ = view_.record ? view_.record->holder : std::string();
  address_ = view_.record ? view_.record->address : std::string();
}

Status LeaderElector::Write(const std::string& holder) {
  const auto sent = steady_clock::now();
  const std::string wall = MicroTime(system_clock::now());
  const bool create = lease_.is_null();
  const LeaseRecord before = view_.record.value_or(LeaseRecord());
  Json lease =
      create ? Json{{"metadata", {{"name", options_.lease.name}, {"namespace", options_.lease.ns}}}}
             : lease_;
  Json& spec = lease["spec"];
  if (!spec.is_object()) spec = Json::object();
  if (before.holder != options_.identity) {
    spec["acquireTime"] = wall;
    spec["leaseTransitions"] = create ? 0 : before.transitions + 1;
  }
  if (holder.empty()) {
    spec.erase("holderIdentity");  // The API refuses an empty one.
  } else {
    spec["holderIdentity"] = holder;
  }
  Json& notes = lease["metadata"]["annotations"];
  if (!notes.is_object()) notes = Json::object();
  if (holder.empty() || options_.address.empty()) {
    notes.erase(kHolderAddress);
  } else {
    notes[kHolderAddress] = options_.address;
  }
  spec["leaseDurationSeconds"] =
      std::chrono::duration_cast<std::chrono::seconds>(options_.timing.duration).count();
  spec["renewTime"] = wall;

  auto written = create ? api_.Create(Leases(), lease) : api_.Update(Leases(), lease);
  if (!written.ok()) {
    // Conflict and AlreadyExists: somebody was quicker; the next reading tells who.
    if (written.status().code() != StatusCode::kConflict &&
        written.status().code() != StatusCode::kAlreadyExists) {
      NoteError(written.status());
    }
    return written.status();
  }
  lease_ = *std::move(written);
  view_.Observe(DecodeLease(lease_), steady_clock::now());
  if (holder != options_.identity) return {};
  {
    std::lock_guard lock(mutex_);
    holder_ = holder;
    address_ = options_.address;
  }
  view_.renewed_at = sent;
  renewed_ticks_ = sent.time_since_epoch().count();
  last_error_.clear();
  if (!view_.leading) {
    view_.leading = true;
    leading_ = true;
    log::Info("elected leader", {{"lease", options_.lease.Key()}, {"identity", options_.identity}});
    if (options_.on_elected) options_.on_elected();
  }
  return {};
}

void LeaderElector::Lose() {
  lost_ = true;
  leading_ = false;
  view_.leading = false;
  const bool taken = view_.record && view_.record->holder != options_.identity;
  const std::string why =
      taken ? "lease " + options_.lease.Key() + " is held by \"" + view_.record->holder + "\""
            : "lease " + options_.lease.Key() + " could not be renewed for " +
                  std::to_string(options_.timing.renew_deadline.count()) + " ms" +
                  (last_error_.empty() ? std::string() : ": " + last_error_);
  log::Error("lost the leadership", {{"lease", options_.lease.Key()}, {"error", why}});
  if (options_.on_lost) options_.on_lost(why);
}

void LeaderElector::Release() {
  leading_ = false;
  view_.leading = false;
  // One try: if it does not arrive, the next leader waits for the lease to run out.
  const Status status = Write("");
  if (status.ok()) {
    log::Info("released the lease", {{"lease", options_.lease.Key()}});
  } else {
    log::Warning("lease not released",
                 {{"lease", options_.lease.Key()}, {"error", status.ToString()}});
  }
}

void LeaderElector::NoteError(const Status& status) {
  if (last_error_ == status.message()) return;
  last_error_ = status.message();
  log::Warning("leader election interrupted",
               {{"lease", options_.lease.Key()}, {"error", status.ToString()}});
}

bool LeaderElector::Sleep() {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, options_.timing.retry,
                    [this] { return stopping_ || asked_ > answered_; });
  return !stopping_;
}

}  // namespace rouse::kube
