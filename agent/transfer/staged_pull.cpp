#include "agent/transfer/staged_pull.h"

#include <algorithm>
#include <array>
#include <future>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "agent/memory/chunk_digest.h"
#include "agent/transfer/digester.h"
#include "agent/transfer/source.h"
#include "agent/ucx/endpoint.h"
#include "agent/ucx/worker.h"
#include "common/log.h"
#include "common/round_up.h"

namespace rouse::transfer {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr milliseconds kReportEvery{100};
constexpr std::chrono::microseconds kPollBeforeSleep{50};
/// Larger parts would hide no more of the time that a request takes.
constexpr std::uint64_t kMaxPartBytes = std::uint64_t{128} << 20;

/// A part of the arena that is in the source's buffer at one time: whole chunks.
struct Part {
  std::uint64_t offset = 0;
  std::uint64_t bytes = 0;
  std::uint32_t buffer = 0;
};

std::vector<Part> PartsOf(const RemoteRank& rank) {
  const WeightManifest& manifest = rank.manifest;
  const std::uint64_t most = std::min(
      {rank.stage_bytes, kMaxPartBytes, RoundUp(manifest.arena_bytes, manifest.chunk_bytes)});
  const std::uint64_t bytes = most / manifest.chunk_bytes * manifest.chunk_bytes;
  std::vector<Part> parts;
  for (std::uint64_t at = 0; at < manifest.arena_bytes; at += bytes) {
    parts.push_back({.offset = at,
                     .bytes = std::min(bytes, manifest.arena_bytes - at),
                     .buffer = static_cast<std::uint32_t>(parts.size() % kStageBuffers)});
  }
  return parts;
}

// One pull under way. Members are destroyed in reverse: the source is asked for nothing more, the
// connection closes, after which nothing writes to our buffers, the digest threads end before the
// worker that they signal.
class Session {
 public:
  static Result<std::unique_ptr<Session>> Start(const StagedSource& source,
                                                const std::shared_ptr<ucx::Context>& context,
                                                memory::Arena& to, const AskToStage& ask,
                                                const PullOptions& options,
                                                const ProgressCallback& on_progress) {
    std::unique_ptr<Session> session(new Session(source, to, ask, options, on_progress));
    ROUSE_RETURN_IF_ERROR(session->Prepare(context));
    return session;
  }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  Status Run(const std::stop_token& stop);
  PullReport Report() const {
    return {.counters = counters_, .seconds = Elapsed(), .transport = transport_};
  }

 private:
  struct Read {
    std::uint64_t chunk = 0;
    std::uint64_t bytes = 0;
    ucx::GetRequest request;
  };

  Session(const StagedSource& source, memory::Arena& to, const AskToStage& ask,
          const PullOptions& options, const ProgressCallback& on_progress)
      : source_(source),
        manifest_(source.rank.manifest),
        to_(to),
        ask_(ask),
        options_(options),
        on_progress_(on_progress),
        parts_(PartsOf(source.rank)) {
    counters_.bytes_total = manifest_.arena_bytes;
    counters_.chunks_total = manifest_.chunk_digests.size();
  }

  Status Prepare(const std::shared_ptr<ucx::Context>& context);
  void Ask(std::size_t part);
  Status ReadPart(const Part& part, const RemoteSlab& slab, const std::stop_token& stop);
  void StartReads(const Part& part, const RemoteSlab& slab);
  Status Drive(const std::stop_token& stop, const std::function<bool()>& done);
  Status CollectReads();
  Status CollectDigests();
  void ReportSometimes(Clock::time_point now);
  double Elapsed() const { return std::chrono::duration<double>(Clock::now() - started_).count(); }
  std::span<std::byte> LocalChunk(std::uint64_t chunk);

  const StagedSource& source_;
  const WeightManifest& manifest_;
  memory::Arena& to_;
  const AskToStage& ask_;
  const PullOptions& options_;
  const ProgressCallback& on_progress_;
  const std::vector<Part> parts_;
  const Clock::time_point started_ = Clock::now();
  Clock::time_point moved_ = started_;
  Clock::time_point next_report_ = started_;
  PullCounters counters_;
  std::string transport_;
  std::unique_ptr<memory::Arena> local_;  // a slab for each buffer
  std::unique_ptr<memory::Pin> pin_;
  std::vector<ucx::RegisteredMemory> registered_;
  std::unique_ptr<ucx::Worker> worker_;
  std::optional<Digester> digester_;
  std::unique_ptr<ucx::Endpoint> endpoint_;
  std::optional<ucx::RemoteKey> key_;
  std::vector<Read> reads_;
  std::uint64_t next_ = 0;              // of the part that is read: bytes asked for
  std::vector<std::uint64_t> missing_;  // by chunk: bytes that have not arrived
  std::array<std::uint64_t, kStageBuffers> unverified_{};  // by buffer: chunks read, or being read
  std::future<Result<RemoteSlab>> staged_;
};

Status Session::Prepare(const std::shared_ptr<ucx::Context>& context) {
  const std::uint64_t bytes = RoundUp(parts_.front().bytes, memory::HostMemory()->granularity());
  ROUSE_ASSIGN_OR_RETURN(local_, memory::Arena::Create({.bytes = bytes * kStageBuffers,
                                                        .slab_bytes = bytes,
                                                        .name = "rouse-stage",
                                                        .populate = true}));
  auto pin = to_.memory().PinHost(local_->span());
  if (pin.ok()) {
    pin_ = *std::move(pin);
  } else {
    log::Warning("copies to the GPU will be slow", {{"error", pin.status().ToString()}});
  }
  for (std::size_t i = 0; i < kStageBuffers; ++i) {
    ROUSE_ASSIGN_OR_RETURN(auto memory,
                           ucx::RegisteredMemory::Register(context, local_->SlabSpan(i)));
    registered_.push_back(std::move(memory));
  }
  missing_.resize(manifest_.chunk_digests.size());
  for (std::size_t i = 0; i < missing_.size(); ++i) {
    missing_[i] = memory::ChunkRangeOf(i, manifest_.arena_bytes, manifest_.chunk_bytes).bytes;
  }
  ROUSE_ASSIGN_OR_RETURN(worker_, ucx::Worker::Create(context));
  digester_.emplace(
      options_.digest_threads, manifest_.chunk_digests, [this] { worker_->Signal(); },
      [this](std::uint64_t chunk, std::span<const std::byte> arrived) {
        const auto range =
            memory::ChunkRangeOf(chunk, manifest_.arena_bytes, manifest_.chunk_bytes);
        return to_.memory().CopyIn(arrived, to_.span().data() + range.offset);
      });
  ROUSE_ASSIGN_OR_RETURN(endpoint_, ucx::Endpoint::Connect(*worker_, source_.worker_address));
  return {};
}

void Session::Ask(std::size_t part) {
  const StageRequest request{.lease = source_.lease,
                             .rank = manifest_.rank,
                             .buffer = parts_[part].buffer,
                             .offset = parts_[part].offset,
                             .bytes = parts_[part].bytes};
  staged_ = std::async(std::launch::async, [this, request] {
    auto answer = ask_(request);
    worker_->Signal();
    return answer;
  });
}

Status Session::Run(const std::stop_token& stop) {
  Ask(0);
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    ROUSE_RETURN_IF_ERROR(Drive(stop, [this] {
      return staged_.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
    }));
    ROUSE_ASSIGN_OR_RETURN(const RemoteSlab slab, staged_.get());
    moved_ = Clock::now();
    // Into the buffer whose reads ended with the part before.
    if (i + 1 < parts_.size()) Ask(i + 1);
    ROUSE_RETURN_IF_ERROR(ReadPart(parts_[i], slab, stop));
  }
  return Drive(stop, [this] { return counters_.chunks_verified == counters_.chunks_total; });
}

Status Session::ReadPart(const Part& part, const RemoteSlab& slab, const std::stop_token& stop) {
  if (slab.bytes != part.bytes || slab.address + slab.bytes < slab.address) {
    return InvalidArgument("slab: it has " + std::to_string(slab.bytes) + " bytes, " +
                           std::to_string(part.bytes) + " were asked for");
  }
  ROUSE_ASSIGN_OR_RETURN(key_, endpoint_->OpenKey(slab.rkey));
  // What was read into our buffer before must have been copied out of it.
  ROUSE_RETURN_IF_ERROR(Drive(stop, [&] { return unverified_[part.buffer] == 0; }));
  unverified_[part.buffer] = ChunkCount(part.bytes, manifest_.chunk_bytes);
  next_ = 0;
  return Drive(stop, [&] {
    StartReads(part, slab);
    return next_ == part.bytes && reads_.empty();
  });
}

void Session::StartReads(const Part& part, const RemoteSlab& slab) {
  const std::uint64_t piece = std::max<std::uint64_t>(options_.piece_bytes, 1);
  const std::size_t window = std::max({options_.window, options_.total_window, 1u});
  while (next_ < part.bytes && reads_.size() < window) {
    const std::uint64_t in_chunk = manifest_.chunk_bytes - next_ % manifest_.chunk_bytes;
    const std::uint64_t bytes = std::min({piece, in_chunk, part.bytes - next_});
    reads_.push_back(
        {.chunk = (part.offset + next_) / manifest_.chunk_bytes,
         .bytes = bytes,
         .request = endpoint_->Get({.into = local_->SlabSpan(part.buffer).subspan(next_, bytes),
                                    .memory = &registered_[part.buffer],
                                    .from = slab.address + next_,
                                    .key = &*key_})});
    next_ += bytes;
  }
}

// Lets everything go on until `done`, which is asked again after each event.
Status Session::Drive(const std::stop_token& stop, const std::function<bool()>& done) {
  while (!done()) {
    if (stop.stop_requested()) return Status(StatusCode::kCancelled, "the pull was cancelled");
    worker_->Progress();
    ROUSE_RETURN_IF_ERROR(CollectReads());
    ROUSE_RETURN_IF_ERROR(CollectDigests());
    ROUSE_RETURN_IF_ERROR(endpoint_->status());
    const Clock::time_point now = Clock::now();
    ReportSometimes(now);
    if (now - moved_ > options_.progress_deadline) {
      return DeadlineExceeded("nothing came for " +
                              std::to_string(options_.progress_deadline.count()) + " ms");
    }
    if (now - moved_ < kPollBeforeSleep) continue;
    ROUSE_RETURN_IF_ERROR(worker_->Wait(std::min(kReportEvery, options_.progress_deadline)));
  }
  return {};
}

Status Session::CollectReads() {
  Status failed;
  std::erase_if(reads_, [&](Read& read) {
    const std::optional<Status> ended = read.request.Poll();
    if (!ended) return false;
    if (!ended->ok()) {
      // Why the connection broke says more than that this read was cancelled by it.
      failed = endpoint_->status().ok() ? *ended : endpoint_->status();
      return true;
    }
    moved_ = Clock::now();
    if (transport_.empty()) transport_ = endpoint_->Transport();
    counters_.bytes_arrived += read.bytes;
    missing_[read.chunk] -= read.bytes;
    if (missing_[read.chunk] == 0) digester_->Submit(read.chunk, LocalChunk(read.chunk));
    return true;
  });
  return failed;
}

Status Session::CollectDigests() {
  for (const DigestResult& result : digester_->Take()) {
    moved_ = Clock::now();
    if (!result.matches) {
      ++counters_.mismatches;
      return DataLoss("chunk " + std::to_string(result.chunk) + " of rank " +
                      std::to_string(manifest_.rank) + " is not what its digest says");
    }
    ROUSE_RETURN_IF_ERROR(result.kept);
    const auto range =
        memory::ChunkRangeOf(result.chunk, manifest_.arena_bytes, manifest_.chunk_bytes);
    ++counters_.chunks_verified;
    counters_.bytes_verified += range.bytes;
    --unverified_[parts_[range.offset / parts_.front().bytes].buffer];
  }
  return {};
}

// Where a chunk of the part that is, or was last, read into its buffer lies there.
std::span<std::byte> Session::LocalChunk(std::uint64_t chunk) {
  const auto range = memory::ChunkRangeOf(chunk, manifest_.arena_bytes, manifest_.chunk_bytes);
  const Part& part = parts_[range.offset / parts_.front().bytes];
  return local_->SlabSpan(part.buffer).subspan(range.offset - part.offset, range.bytes);
}

void Session::ReportSometimes(Clock::time_point now) {
  if (!on_progress_ || counters_.bytes_verified == 0 || now < next_report_) return;
  on_progress_({.counters = counters_, .seconds = Elapsed()});
  next_report_ = now + kReportEvery;
}

}  // namespace

Result<PullReport> PullStaged(const StagedSource& source, std::shared_ptr<ucx::Context> context,
                              memory::Arena& to, const AskToStage& ask, const PullOptions& options,
                              std::stop_token stop, const ProgressCallback& on_progress) {
  const std::string what = "pull from " + source.name;
  const Status sane = CheckSource(source.name, source.worker_address, source.rank);
  ROUSE_RETURN_IF_ERROR(sane);
  if (!CanBeStaged(source.rank)) return InvalidArgument(what + ": it makes no copies");
  ROUSE_RETURN_IF_ERROR(
      memory::CheckManifest(source.rank.manifest, to.bytes(), true).WithContext(what));
  if (source.rank.manifest.chunk_bytes > kMaxPartBytes) {
    return InvalidArgument(what + ": its chunks are over " + std::to_string(kMaxPartBytes) +
                           " bytes");
  }
  auto session = Session::Start(source, context, to, ask, options, on_progress);
  if (!session.ok()) return session.status().WithContext(what);
  ROUSE_RETURN_IF_ERROR((*session)->Run(stop).WithContext(what));
  const PullReport report = (*session)->Report();
  if (on_progress) on_progress({.counters = report.counters, .seconds = report.seconds});
  return report;
}

}  // namespace rouse::transfer
