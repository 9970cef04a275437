#include "agent/server/checkpoint_stream.h"

#include <pthread.h>

#include <algorithm>
#include <filesystem>
#include <utility>

#include "agent/server/rank_name.h"
#include "common/log.h"

namespace rouse::agent {
namespace {

using Clock = std::chrono::steady_clock;

std::string Normal(const std::string& folder) {
  std::filesystem::path path = std::filesystem::path(folder).lexically_normal();
  if (!path.has_filename()) path = path.parent_path();
  return path.string();
}

// The engine has chosen its files by its own rules; where they are others than ours, it shall load
// them itself.
Status CheckFiles(const std::vector<CheckpointFile>& wanted,
                  const storage::Checkpoint& checkpoint) {
  std::vector<CheckpointFile> here;
  for (const storage::Shard& shard : checkpoint.shards) {
    here.push_back({.name = shard.file, .bytes = shard.file_bytes});
  }
  if (wanted == here) return {};
  const auto [theirs, ours] = std::mismatch(wanted.begin(), wanted.end(), here.begin(), here.end());
  const auto name = [](const auto& at, const auto& end) {
    return at == end ? "no more"
                     : storage::Quoted(at->name) + " of " + std::to_string(at->bytes) + " bytes";
  };
  return FailedPrecondition("the engine's checkpoint is not the agent's: where the engine has " +
                            name(theirs, wanted.end()) + ", the agent has " +
                            name(ours, here.end()));
}

}  // namespace

CheckpointStream::CheckpointStream(CheckpointStreamOptions options, CheckpointStreamHooks hooks)
    : options_(std::move(options)), hooks_(std::move(hooks)) {
  thread_ = std::jthread([this](const std::stop_token& stop) {
    pthread_setname_np(pthread_self(), "storage");
    Work(stop);
  });
}

CheckpointStream::~CheckpointStream() {
  End();
}

void CheckpointStream::End() {
  if (!thread_.joinable()) return;
  thread_.request_stop();
  {
    const std::scoped_lock lock(mutex_);
    EndLoad(Status(StatusCode::kCancelled, "the agent ends"));
  }
  thread_.join();
}

// ---- The ranks' side

Result<std::optional<OpenedStream>> CheckpointStream::Open(const HelloRequest& hello,
                                                           const OpenStreamRequest& request) {
  if (options_.folder.empty()) return FailedPrecondition("the agent has no model folder");
  if (Normal(request.folder) != Normal(options_.folder)) {
    return FailedPrecondition("the engine loads from " + request.folder +
                              ", the agent's model folder is " + options_.folder);
  }
  std::vector<CheckpointFile> wanted = request.files;
  std::sort(wanted.begin(), wanted.end());
  const std::scoped_lock lock(mutex_);
  delivered_.erase(hello.rank);
  const bool loads = load_ != nullptr && load_->status.ok() && !load_->stop.stop_requested();
  // A load ends with the last rank that closes it: somebody still reads, and is not to lose that.
  if (loads && load_->model != hello.model()) return std::optional<OpenedStream>();
  const bool joinable = loads && load_->ranks == hello.ranks_of_model() && load_->wanted == wanted;
  const Consumer* const known = Find(hello.rank);
  const bool asks_again = known != nullptr && !known->opened && !known->closed;
  if (!asks_again) {
    if (known != nullptr || !joinable) Begin(hello, std::move(wanted));
    load_->consumers[hello.rank] = {};
  }
  Load& load = *load_;
  if (!load.status.ok()) {
    load.consumers[hello.rank].closed = true;
    return load.status;
  }
  if (load.ring == nullptr) return std::optional<OpenedStream>();
  auto opened = Describe(load);
  if (!opened.ok()) return opened.status();
  load.consumers[hello.rank].opened = true;
  return std::optional(*std::move(opened));
}

void CheckpointStream::Begin(const HelloRequest& hello, std::vector<CheckpointFile> wanted) {
  EndLoad(Unavailable("the engine has begun to load anew"));
  load_ = std::make_shared<Load>();
  load_->ranks = hello.ranks_of_model();
  load_->model = hello.model();
  load_->wanted = std::move(wanted);
  load_->since = Clock::now();
  next_ = load_;
  changed_.notify_all();
}

Result<OpenedStream> CheckpointStream::Describe(const Load& load) const {
  const storage::Checkpoint& checkpoint = load.files->checkpoint();
  OpenedStream opened{.shape = {.slots = load.plan.slots,
                                .slot_bytes = load.plan.slot_bytes,
                                .batches = load.plan.batches.size(),
                                .tensors = checkpoint.tensor_count(),
                                .bytes = checkpoint.data_bytes(),
                                .dtypes = {}},
                      .slots = {}};
  std::set<std::string> dtypes;
  for (const storage::Shard& shard : checkpoint.shards) {
    for (const storage::FileTensor& tensor : shard.header.tensors) {
      dtypes.emplace(tensor.dtype->name);
    }
  }
  opened.shape.dtypes.assign(dtypes.begin(), dtypes.end());
  for (std::size_t i = 0; i < load.plan.slots; ++i) {
    ROUSE_ASSIGN_OR_RETURN(memory::OwnedFd fd, load.ring->slots().slab(i).DuplicateFd());
    opened.slots.push_back(std::move(fd));
  }
  return opened;
}

Result<std::optional<StreamedBatch>> CheckpointStream::Next(const NextBatchRequest& request) {
  const std::scoped_lock lock(mutex_);
  Consumer* const found = Find(request.rank);
  if (found == nullptr || !found->opened || found->closed) {
    return FailedPrecondition("the stream of " + RankName(request.rank) + " has ended");
  }
  Load& load = *load_;
  Consumer& consumer = *found;
  if (request.batch != consumer.next) {
    return InvalidArgument("batch: " + std::to_string(request.batch) + " was asked for, " +
                           std::to_string(consumer.next) + " is next");
  }
  if (request.released < consumer.released || request.released > consumer.next) {
    return InvalidArgument("released: is " + std::to_string(request.released) + ", expected " +
                           std::to_string(consumer.released) + " to " +
                           std::to_string(consumer.next));
  }
  consumer.released = request.released;
  if (!load.status.ok()) return load.status;
  if (load.consumers.size() < load.ranks) {
    if (Clock::now() - load.since < options_.join_deadline) return std::optional<StreamedBatch>();
    Fail(load, DeadlineExceeded(std::to_string(load.ranks - load.consumers.size()) +
                                " other ranks have not asked for the checkpoint within " +
                                std::to_string(options_.join_deadline.count()) + " ms"));
    return load.status;
  }
  std::size_t free = load.plan.batches.size();
  for (const auto& [rank, one] : load.consumers) {
    if (!one.closed) free = std::min(free, one.released);
  }
  load.ring->Free(free);
  const std::size_t index = request.batch;
  if (index == load.plan.batches.size()) {
    if (!load.read) return std::optional<StreamedBatch>();
    delivered_.insert(request.rank);
    return std::optional(StreamedBatch{.batch = index, .slot = 0, .pieces = {}});
  }
  if (!load.ring->Ready(index)) return std::optional<StreamedBatch>();
  const storage::StreamBatch& batch = load.plan.batches[index];
  const auto& tensors = load.files->checkpoint().shards[batch.shard].header.tensors;
  StreamedBatch answer{.batch = index, .slot = index % load.plan.slots, .pieces = {}};
  for (const storage::StreamPiece& piece : batch.pieces) {
    const storage::FileTensor& tensor = tensors[piece.tensor];
    answer.pieces.push_back({.name = tensor.name,
                             .dtype = std::string(tensor.dtype->name),
                             .shape = tensor.shape,
                             .begin = piece.begin,
                             .bytes = piece.bytes,
                             .at = piece.slot_offset});
  }
  ++consumer.next;
  return std::optional(std::move(answer));
}

CheckpointStream::Consumer* CheckpointStream::Find(std::uint32_t rank) {
  if (load_ == nullptr) return nullptr;
  const auto found = load_->consumers.find(rank);
  return found == load_->consumers.end() ? nullptr : &found->second;
}

void CheckpointStream::Leave(std::uint32_t rank) {
  Close(rank);
  const std::scoped_lock lock(mutex_);
  delivered_.erase(rank);
}

void CheckpointStream::Close(std::uint32_t rank) {
  const std::scoped_lock lock(mutex_);
  Consumer* const found = Find(rank);
  if (found == nullptr) return;
  found->closed = true;
  const bool all = std::all_of(load_->consumers.begin(), load_->consumers.end(),
                               [](const auto& entry) { return entry.second.closed; });
  if (all) EndLoad(Status(StatusCode::kCancelled, "nobody loads the checkpoint any more"));
}

bool CheckpointStream::Delivered(std::uint32_t rank) const {
  const std::scoped_lock lock(mutex_);
  return delivered_.contains(rank);
}

// With the lock held.
void CheckpointStream::Fail(Load& load, Status status) {
  if (!load.status.ok()) return;
  load.status = std::move(status);
  load.stop.request_stop();
}

void CheckpointStream::EndLoad(Status status) {
  if (load_ == nullptr) return;
  Fail(*load_, std::move(status));
  load_.reset();
  next_.reset();
}

// ---- The reading thread

void CheckpointStream::Work(const std::stop_token& stop) {
  while (true) {
    std::shared_ptr<Load> load;
    {
      std::unique_lock lock(mutex_);
      if (!changed_.wait(lock, stop, [&] { return next_ != nullptr; })) return;
      load = std::exchange(next_, nullptr);
    }
    Read(*load);
    hooks_.on_change();
  }
}

void CheckpointStream::Read(Load& load) {
  const auto started = Clock::now();
  LoadOutcome outcome{.status = Prepare(load)};
  if (outcome.status.ok()) {
    hooks_.on_change();
    auto report = storage::ReadCheckpoint(*load.files, load.plan.reads, *load.ring, options_.read,
                                          load.stop.get_token(), {});
    outcome.status = report.status();
    outcome.bytes = load.ring->bytes_read();
    if (report.ok()) {
      outcome.way = report->way;
      outcome.reason = report->reason;
    }
  }
  outcome.seconds = std::chrono::duration<double>(Clock::now() - started).count();
  {
    // Why it was ended says more than that it was.
    const std::scoped_lock lock(mutex_);
    if (!load.status.ok()) outcome.status = load.status;
  }
  hooks_.on_read(outcome);
  const std::scoped_lock lock(mutex_);
  if (outcome.status.ok()) {
    load.read = true;
  } else {
    Fail(load, outcome.status);
  }
}

Status CheckpointStream::Prepare(Load& load) {
  ROUSE_ASSIGN_OR_RETURN(auto files,
                         storage::CheckpointFiles::Open(options_.folder, load.stop.get_token()));
  ROUSE_RETURN_IF_ERROR(CheckFiles(load.wanted, files.checkpoint()));
  ROUSE_ASSIGN_OR_RETURN(storage::StreamPlan plan,
                         storage::PlanStream(files.checkpoint(), options_.limits));
  ROUSE_ASSIGN_OR_RETURN(auto ring,
                         storage::StreamRing::Create(plan, memory::HostMemory(), hooks_.on_change));
  const std::scoped_lock lock(mutex_);
  load.files = std::make_unique<storage::CheckpointFiles>(std::move(files));
  load.plan = std::move(plan);
  load.ring = std::move(ring);
  return {};
}

}  // namespace rouse::agent
