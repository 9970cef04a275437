#include "agent/transfer/publisher.h"

#include <sys/random.h>

#include <array>
#include <cerrno>
#include <utility>

#include "agent/memory/chunk_digest.h"
#include "common/log.h"

namespace rouse::transfer {
namespace {

TimePoint Now() { return std::chrono::steady_clock::now(); }

// Nobody can guess a lease of somebody else.
Result<std::string> RandomId() {
  std::array<unsigned char, 16> bytes{};
  if (::getrandom(bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) {
    return FromErrno(errno, "draw a lease id");
  }
  constexpr char kHex[] = "0123456789abcdef";
  std::string id;
  for (const unsigned char byte : bytes) {
    id.push_back(kHex[byte >> 4]);
    id.push_back(kHex[byte & 15]);
  }
  return id;
}

Result<std::vector<RemoteSlab>> Describe(const RegisteredArena& arena) {
  std::vector<RemoteSlab> slabs;
  for (std::size_t i = 0; i < arena.arena().slab_count(); ++i) {
    ROUSE_ASSIGN_OR_RETURN(std::string key, arena.slab(i).PackKey());
    slabs.push_back({.address = arena.slab(i).address(),
                     .bytes = arena.slab(i).range().size(),
                     .rkey = std::move(key)});
  }
  return slabs;
}

}  // namespace

Publisher::Publisher(std::unique_ptr<ucx::Worker> worker, std::string address,
                     const LeaseLimits& limits)
    : address_(std::move(address)),
      leases_(limits),
      worker_(std::move(worker)),
      progress_(std::make_unique<ucx::ProgressThread>(*worker_, "ucx-source")) {}

Result<std::unique_ptr<Publisher>> Publisher::Create(std::shared_ptr<ucx::Context> context,
                                                     const LeaseLimits& limits) {
  ROUSE_ASSIGN_OR_RETURN(auto worker, ucx::Worker::Create(std::move(context)));
  ROUSE_ASSIGN_OR_RETURN(std::string address, worker->Address());
  return std::unique_ptr<Publisher>(new Publisher(std::move(worker), std::move(address), limits));
}

Status Publisher::Publish(std::shared_ptr<RegisteredArena> arena, WeightManifest manifest) {
  const std::uint32_t rank = manifest.rank;
  const std::string what = "publish rank " + std::to_string(rank);
  ROUSE_RETURN_IF_ERROR(
      memory::CheckManifest(manifest, arena->arena().bytes(), true).WithContext(what));
  ROUSE_RETURN_IF_ERROR(arena->arena().Seal().WithContext(what));
  auto slabs = Describe(*arena);
  if (!slabs.ok()) return slabs.status().WithContext(what);

  const std::lock_guard lock(mutex_);
  if (published_.contains(rank)) {
    return Status(StatusCode::kAlreadyExists, what + ": it is published");
  }
  published_.emplace(rank, Published{.arena = std::move(arena),
                                     .description = {.manifest = std::move(manifest),
                                                     .slabs = *std::move(slabs)}});
  return {};
}

void Publisher::Withdraw() {
  const std::lock_guard lock(mutex_);
  for (auto& [rank, published] : published_) withdrawn_.push_back(std::move(published.arena));
  published_.clear();
  Collect(Now());
}

Result<OpenResponse> Publisher::Open(const std::string& requester) {
  ROUSE_ASSIGN_OR_RETURN(const std::string id, RandomId());
  const std::lock_guard lock(mutex_);
  const TimePoint now = Now();
  Collect(now);
  if (published_.empty()) return Unavailable("no weights are published here yet");
  ROUSE_RETURN_IF_ERROR(leases_.Open(id, requester, now));
  OpenResponse answer;
  answer.lease = id;
  answer.lease_ms = leases_.duration().count();
  answer.worker_address = address_;
  for (const auto& [rank, published] : published_) answer.ranks.push_back(published.description);
  return answer;
}

Status Publisher::Renew(const std::string& lease) {
  const std::lock_guard lock(mutex_);
  return leases_.Renew(lease, Now());
}

Status Publisher::Close(const std::string& lease) {
  const std::lock_guard lock(mutex_);
  const TimePoint now = Now();
  const Status closed = leases_.Close(lease, now);
  Collect(now);
  return closed;
}

void Publisher::Expire() {
  const std::lock_guard lock(mutex_);
  Collect(Now());
}

// Requires mutex_.
void Publisher::Collect(TimePoint now) {
  for (const std::string& requester : leases_.Expire(now)) {
    log::Warning("weight lease ended without being closed", {{"requester", requester}});
  }
  if (leases_.Count(now) == 0) withdrawn_.clear();
}

std::size_t Publisher::lease_count() const {
  const std::lock_guard lock(mutex_);
  return leases_.Count(Now());
}

std::size_t Publisher::rank_count() const {
  const std::lock_guard lock(mutex_);
  return published_.size();
}

}  // namespace rouse::transfer
