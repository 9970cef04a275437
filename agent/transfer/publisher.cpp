#include "agent/transfer/publisher.h"

#include <sys/random.h>

#include <array>
#include <cerrno>
#include <utility>
#include <vector>

#include "agent/memory/chunk_digest.h"
#include "agent/transfer/slab_mappings.h"
#include "common/log.h"

namespace rouse::transfer {
namespace {

TimePoint Now() {
  return std::chrono::steady_clock::now();
}

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

}  // namespace

Result<std::unique_ptr<Publisher>> Publisher::Create(const PublisherOptions& options) {
  std::unique_ptr<Publisher> publisher(new Publisher(options));
  {
    const std::lock_guard lock(publisher->mutex_);
    ROUSE_RETURN_IF_ERROR(publisher->EnsureProcess());
  }
  if (!options.node_folder.empty()) {
    auto share = NodeShare::Start(
        options.node_folder, options.node_socket,
        [&self = *publisher](const NodeRequest& request) { return self.Share(request); }, {},
        options.broadcasting == nullptr
            ? NodeShare::Join()
            : [&self = *publisher](const NodeJoin& join) { return self.Join(join); });
    if (share.ok()) {
      publisher->node_share_ = *std::move(share);
    } else {
      log::Warning("agents of this node will come over the network",
                   {{"error", share.status().ToString()}});
    }
  }
  return publisher;
}

// Requires mutex_. A new process has other addresses and keys, so every published rank is described
// anew.
Status Publisher::EnsureProcess() {
  std::string why;
  if (process_ != nullptr && process_->Alive(&why)) return {};
  if (process_ != nullptr && process_->serving()) {
    log::Error("the weight source process died; pulls from it fail and must be opened again",
               {{"cause", why}, {"leases", leases_.Count(Now())}});
  }
  stale_ = false;
  if (process_ == nullptr || !process_->KeeperAlive()) {
    ROUSE_ASSIGN_OR_RETURN(process_, SourceProcess::Start(options_.program));
    for (const Held& held : held_) {
      if (const auto arena = held.arena.lock()) ROUSE_RETURN_IF_ERROR(HoldSlabs(*arena));
    }
  }
  ROUSE_RETURN_IF_ERROR(process_->Serve());
  for (auto& [rank, published] : published_) {
    if (const Status status = Describe(published); !status.ok()) {
      process_->End();
      return status.WithContext("offer rank " + std::to_string(rank) + " again");
    }
  }
  return {};
}

Status Publisher::HoldSlabs(const memory::Arena& arena) {
  for (std::size_t i = 0; i < arena.slab_count(); ++i) {
    ROUSE_RETURN_IF_ERROR(process_->Hold(arena.slab(i)));
  }
  return {};
}

Status Publisher::Hold(const std::shared_ptr<memory::Arena>& arena) {
  if (!arena->memory().on_host()) return {};
  const std::lock_guard lock(mutex_);
  ReleaseUnused();
  Held held{.arena = arena, .slabs = {}};
  for (std::size_t i = 0; i < arena->slab_count(); ++i) {
    ROUSE_ASSIGN_OR_RETURN(std::string key, SlabKey(arena->slab(i).fd()));
    held.slabs.push_back(std::move(key));
  }
  ROUSE_RETURN_IF_ERROR(EnsureProcess());
  ROUSE_RETURN_IF_ERROR(HoldSlabs(*arena).WithContext("hold an arena for peers"));
  held_.push_back(std::move(held));
  return {};
}

// Requires mutex_. What is held keeps its memory, so that must end with the arena.
void Publisher::ReleaseUnused() {
  std::erase_if(held_, [&](const Held& held) {
    if (!held.arena.expired()) return false;
    for (const std::string& slab : held.slabs) {
      if (process_ == nullptr) break;
      if (const Status status = process_->Release(slab); !status.ok()) {
        log::Warning("a slab is not given back", {{"error", status.ToString()}});
      }
    }
    return true;
  });
}

Status Publisher::Describe(Published& published) {
  std::vector<RemoteSlab> slabs;
  if (!published.arena->memory().on_host()) {
    for (const std::uint64_t bytes : published.arena->SlabBytes())
      slabs.push_back({.bytes = bytes});
    published.description.slabs = std::move(slabs);
    const bool holds_a_chunk = options_.stage_bytes >= published.description.manifest.chunk_bytes;
    published.description.stage_bytes = holds_a_chunk ? options_.stage_bytes : 0;
    return {};
  }
  for (std::size_t i = 0; i < published.arena->slab_count(); ++i) {
    ROUSE_ASSIGN_OR_RETURN(RemoteSlab slab, process_->Offer(published.arena->slab(i)));
    slabs.push_back(std::move(slab));
  }
  published.description.slabs = std::move(slabs);
  if (published.available != nullptr) {
    ROUSE_ASSIGN_OR_RETURN(published.description.availability,
                           process_->Offer(published.available->slab()));
  }
  return {};
}

Status Publisher::Publish(std::shared_ptr<memory::Arena> arena, WeightManifest manifest,
                          std::shared_ptr<Availability> available) {
  const std::uint32_t rank = manifest.rank;
  const std::string what = "publish rank " + std::to_string(rank);
  ROUSE_RETURN_IF_ERROR(memory::CheckManifest(manifest, arena->bytes(), true).WithContext(what));
  if (!arena->sealed()) ROUSE_RETURN_IF_ERROR(Hold(arena).WithContext(what));
  ROUSE_RETURN_IF_ERROR(arena->Seal().WithContext(what));
  const std::lock_guard lock(mutex_);
  if (published_.contains(rank)) {
    return Status(StatusCode::kAlreadyExists, what + ": it is published");
  }
  ROUSE_RETURN_IF_ERROR(EnsureProcess().WithContext(what));
  Published published{
      .arena = std::move(arena),
      .available = std::move(available),
      .description = {.manifest = std::move(manifest), .slabs = {}, .availability = {}}};
  ROUSE_RETURN_IF_ERROR(Describe(published).WithContext(what));
  published_.emplace(rank, std::move(published));
  return {};
}

void Publisher::Complete() {
  const std::lock_guard lock(mutex_);
  for (auto& [rank, published] : published_) {
    published.available.reset();
    published.description.availability.reset();
  }
}

void Publisher::Withdraw() {
  Ended ended;
  const std::lock_guard lock(mutex_);
  stale_ = stale_ || !published_.empty();
  for (auto& [rank, published] : published_) {
    if (published.broadcasts != nullptr) ending_.push_back(std::move(published.broadcasts));
  }
  published_.clear();
  ended = Collect(Now());
}

std::size_t Publisher::Revoke() {
  Ended ended;
  const std::lock_guard lock(mutex_);
  const TimePoint now = Now();
  const std::vector<std::string> revoked = leases_.Clear(now);
  for (const std::string& requester : revoked) {
    log::Warning("weight lease ended, its memory is given back", {{"requester", requester}});
  }
  ended = Collect(now);
  return revoked.size();
}

Result<OpenResponse> Publisher::Open(const std::string& requester, bool partial) {
  ROUSE_ASSIGN_OR_RETURN(const std::string id, RandomId());
  Ended ended;
  const std::lock_guard lock(mutex_);
  const TimePoint now = Now();
  ended = Collect(now);
  if (published_.empty()) return Unavailable("no weights are published here yet");
  for (const auto& [rank, published] : published_) {
    if (published.available == nullptr || partial) continue;
    return Unavailable("the weights of this instance are not complete yet: ask again");
  }
  ROUSE_RETURN_IF_ERROR(EnsureProcess());
  ROUSE_RETURN_IF_ERROR(leases_.Open(id, requester, now));
  OpenResponse answer;
  answer.lease = id;
  answer.lease_ms = leases_.duration().count();
  answer.worker_address = process_->worker_address();
  if (node_share_ != nullptr) answer.node_socket = node_share_->name();
  for (const auto& [rank, published] : published_) answer.ranks.push_back(published.description);
  return answer;
}

Result<RemoteSlab> Publisher::Stage(const StageRequest& request) {
  const std::string what = "copy of rank " + std::to_string(request.rank);
  std::shared_ptr<memory::Arena> from;
  std::shared_ptr<Staging::Buffers> buffers;
  {
    const std::lock_guard lock(mutex_);
    ROUSE_RETURN_IF_ERROR(leases_.Renew(request.lease, Now()));
    const auto it = published_.find(request.rank);
    if (it == published_.end()) return NotFound(what + ": it is not published");
    if (it->second.description.stage_bytes == 0) {
      return FailedPrecondition(what + ": it is read without copies, or not at all");
    }
    from = it->second.arena;
    if (request.buffer >= kStageBuffers || request.bytes == 0 ||
        request.bytes > options_.stage_bytes || request.offset > from->bytes() ||
        request.bytes > from->bytes() - request.offset) {
      return InvalidArgument(what + ": bytes from " + std::to_string(request.offset) + " on, " +
                             std::to_string(request.bytes) + " of " +
                             std::to_string(from->bytes()) + ", buffer " +
                             std::to_string(request.buffer));
    }
    const auto lives = [&](const std::string& lease) { return leases_.Lives(lease, Now()); };
    ROUSE_ASSIGN_OR_RETURN(buffers, staging_.Of(request.lease, from->memory(), lives));
    if (std::exchange(buffers->busy[request.buffer], true)) {
      return Unavailable(what + ": buffer " + std::to_string(request.buffer) + " is being filled");
    }
  }
  // Without the lock: others open and renew meanwhile.
  const Status copied =
      from->memory().CopyOut(from->span().data() + request.offset,
                             buffers->arena->SlabSpan(request.buffer).first(request.bytes));
  const std::lock_guard lock(mutex_);
  buffers->busy[request.buffer] = false;
  ROUSE_RETURN_IF_ERROR(copied.WithContext(what));
  // Else they may be another's by now, or none.
  ROUSE_RETURN_IF_ERROR(leases_.Renew(request.lease, Now()));
  ROUSE_RETURN_IF_ERROR(EnsureProcess());
  ROUSE_ASSIGN_OR_RETURN(RemoteSlab slab, process_->Offer(buffers->arena->slab(request.buffer)));
  slab.bytes = request.bytes;
  return slab;
}

Status Publisher::Renew(const std::string& lease) {
  const std::lock_guard lock(mutex_);
  return leases_.Renew(lease, Now());
}

Status Publisher::Close(const std::string& lease) {
  Ended ended;
  const std::lock_guard lock(mutex_);
  const TimePoint now = Now();
  const Status closed = leases_.Close(lease, now);
  ended = Collect(now);
  return closed;
}

void Publisher::Expire() {
  Ended ended;
  const std::lock_guard lock(mutex_);
  ended = Collect(Now());
  if (published_.empty()) return;
  if (const Status status = EnsureProcess(); !status.ok()) {
    log::Error("the weight source process cannot be started", {{"error", status.ToString()}});
  }
}

// Requires mutex_. The source process holds what it was ever offered, so it goes with the last
// lease on something withdrawn, or read through buffers; what is still published gets a new one.
Publisher::Ended Publisher::Collect(TimePoint now) {
  for (const std::string& requester : leases_.Expire(now)) {
    log::Warning("weight lease ended without being closed", {{"requester", requester}});
  }
  Ended ended;
  if (leases_.Count(now) == 0) {
    ended.swap(ending_);
    if (stale_ || !staging_.empty()) {
      process_->End();
      stale_ = false;
      staging_.Clear();
    }
  }
  ReleaseUnused();
  return ended;
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
