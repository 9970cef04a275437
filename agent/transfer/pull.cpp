#include "agent/transfer/pull.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "agent/memory/chunk_digest.h"
#include "agent/transfer/digester.h"
#include "agent/transfer/swarm_plan.h"
#include "agent/ucx/endpoint.h"
#include "agent/ucx/worker.h"

namespace rouse::transfer {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kReportEvery{100};
// How long to poll before sleeping; as in ucx::ProgressThread.
constexpr std::chrono::microseconds kPollBeforeSleep{50};
constexpr SourceId kSource = 0;  // the only one

TimePoint Now() {
  return std::chrono::steady_clock::now();
}

// Arena offsets at which slabs start.
std::vector<std::uint64_t> Starts(const std::vector<std::uint64_t>& sizes) {
  std::vector<std::uint64_t> starts;
  std::uint64_t at = 0;
  for (const std::uint64_t bytes : sizes) {
    starts.push_back(at);
    at += bytes;
  }
  return starts;
}

std::size_t IndexOf(const std::vector<std::uint64_t>& starts, std::uint64_t offset) {
  return static_cast<std::size_t>(std::upper_bound(starts.begin(), starts.end(), offset) -
                                  starts.begin() - 1);
}

std::vector<std::uint64_t> RemoteSizes(const RemoteRank& rank) {
  std::vector<std::uint64_t> sizes;
  for (const RemoteSlab& slab : rank.slabs) sizes.push_back(slab.bytes);
  return sizes;
}

SwarmPlanOptions PlanOptions(const WeightManifest& manifest, const PullOptions& options,
                             std::vector<std::uint64_t> boundaries) {
  SwarmPlanOptions plan;
  plan.arena_bytes = manifest.arena_bytes;
  plan.chunk_bytes = manifest.chunk_bytes;
  plan.boundaries = std::move(boundaries);
  plan.piece_bytes = std::max<std::uint64_t>(options.piece_bytes, 1);
  plan.window = std::max<std::uint32_t>(options.window, 1);
  plan.max_unverified =
      plan.window + 2 * static_cast<std::uint32_t>(std::max(options.digest_threads, 1)) + 2;
  plan.max_damaged = std::max<std::uint32_t>(options.max_mismatches, 1);
  plan.progress_deadline = options.progress_deadline;
  plan.piece_deadline = options.piece_deadline;
  plan.starved_deadline = milliseconds(0);  // no other source will come
  return plan;
}

// Whether nothing else is to be done at this moment.
bool IsLast(const SwarmAction& action) {
  return std::holds_alternative<Wait>(action) || std::holds_alternative<Finish>(action) ||
         std::holds_alternative<Fail>(action);
}

// One pull under way. Members are destroyed in reverse: reads under way are given up, then the
// endpoint closes, after which nothing writes to the arena; the digest threads end before the
// worker they signal.
class Session {
 public:
  static Result<std::unique_ptr<Session>> Start(const PullSource& source, RegisteredArena& arena,
                                                const PullOptions& options);

  Status Run(const std::stop_token& stop, const ProgressCallback& on_progress);

  PullReport Report() const {
    return {.counters = plan_.counters(), .seconds = Elapsed(), .transport = transport_};
  }

 private:
  struct Read {
    std::uint64_t piece = 0;
    ucx::GetRequest request;
  };

  Session(const PullSource& source, RegisteredArena& arena, const PullOptions& options,
          std::unique_ptr<ucx::Worker> worker)
      : source_(source),
        arena_(arena),
        started_(Now()),
        remote_starts_(Starts(RemoteSizes(source.rank))),
        local_starts_(Starts(arena.arena().SlabBytes())),
        plan_(PlanOptions(source.rank.manifest, options, local_starts_)),
        worker_(std::move(worker)),
        digester_(options.digest_threads, source.rank.manifest.chunk_digests,
                  [this] { worker_->Signal(); }) {
    plan_.AddSource({.name = source.name,
                     .max_in_flight = std::max<std::uint32_t>(options.window, 1),
                     .complete = true,
                     .boundaries = remote_starts_},
                    started_);
  }

  double Elapsed() const { return std::chrono::duration<double>(Now() - started_).count(); }

  Status Connect();
  Status Perform(const StartGet& get);
  void Disconnect();
  bool CollectReads();
  bool CollectDigests();

  const PullSource& source_;
  RegisteredArena& arena_;
  const TimePoint started_;
  const std::vector<std::uint64_t> remote_starts_;
  const std::vector<std::uint64_t> local_starts_;
  SwarmPlan plan_;
  std::string transport_;
  std::unique_ptr<ucx::Worker> worker_;
  Digester digester_;
  std::unique_ptr<ucx::Endpoint> endpoint_;
  std::vector<ucx::RemoteKey> keys_;
  std::vector<Read> reads_;
};

Result<std::unique_ptr<Session>> Session::Start(const PullSource& source, RegisteredArena& arena,
                                                const PullOptions& options) {
  ROUSE_ASSIGN_OR_RETURN(auto worker, ucx::Worker::Create(arena.context()));
  std::unique_ptr<Session> session(new Session(source, arena, options, std::move(worker)));
  ROUSE_RETURN_IF_ERROR(session->Connect());
  return session;
}

Status Session::Connect() {
  ROUSE_ASSIGN_OR_RETURN(endpoint_, ucx::Endpoint::Connect(*worker_, source_.worker_address));
  for (std::size_t i = 0; i < source_.rank.slabs.size(); ++i) {
    auto key = endpoint_->OpenKey(source_.rank.slabs[i].rkey);
    if (!key.ok()) return key.status().WithContext("slab " + std::to_string(i));
    keys_.push_back(*std::move(key));
  }
  return {};
}

Status Session::Perform(const StartGet& get) {
  const std::size_t remote = IndexOf(remote_starts_, get.offset);
  ROUSE_ASSIGN_OR_RETURN(const ucx::RegisteredMemory* const memory,
                         arena_.Slab(IndexOf(local_starts_, get.offset)));
  const RemoteSlab& slab = source_.rank.slabs[remote];
  reads_.push_back(
      {.piece = get.piece,
       .request = endpoint_->Get({.into = arena_.arena().span().subspan(get.offset, get.bytes),
                                  .memory = memory,
                                  .from = slab.address + (get.offset - remote_starts_[remote]),
                                  .key = &keys_[remote]})});
  return {};
}

// After this nothing writes to the arena.
void Session::Disconnect() {
  reads_.clear();
  keys_.clear();
  endpoint_.reset();
}

bool Session::CollectReads() {
  const auto& manifest = source_.rank.manifest;
  const std::size_t before = reads_.size();
  std::erase_if(reads_, [&](Read& read) {
    const std::optional<Status> ended = read.request.Poll();
    if (!ended) return false;
    if (!ended->ok()) {
      // Why the connection broke says more than that this read was cancelled by it.
      plan_.OnSourceFailed(kSource, endpoint_->status().ok() ? *ended : endpoint_->status());
    } else if (const auto chunk = plan_.OnArrived(read.piece, Now())) {
      const auto range = memory::ChunkRangeOf(*chunk, manifest.arena_bytes, manifest.chunk_bytes);
      digester_.Submit(*chunk, arena_.arena().span().subspan(range.offset, range.bytes));
    }
    return true;
  });
  if (transport_.empty() && reads_.size() < before) transport_ = endpoint_->Transport();
  return reads_.size() < before;
}

bool Session::CollectDigests() {
  const std::vector<DigestResult> results = digester_.Take();
  for (const DigestResult& result : results) plan_.OnDigest(result.chunk, result.matches);
  return !results.empty();
}

Status Session::Run(const std::stop_token& stop, const ProgressCallback& on_progress) {
  TimePoint next_report = started_ + kReportEvery;
  TimePoint last_event = Now();
  for (;;) {
    if (stop.stop_requested()) {
      return Status(StatusCode::kCancelled, "pull from " + source_.name + " was cancelled");
    }
    SwarmAction action = plan_.Next(Now());
    for (; !IsLast(action); action = plan_.Next(Now())) {
      if (const auto* get = std::get_if<StartGet>(&action)) ROUSE_RETURN_IF_ERROR(Perform(*get));
      if (std::holds_alternative<PutAside>(action)) Disconnect();
    }
    if (std::holds_alternative<Finish>(action)) return {};
    if (const Fail* fail = std::get_if<Fail>(&action)) return fail->status;

    bool moved = worker_->Progress();
    moved = CollectReads() || moved;
    moved = CollectDigests() || moved;
    if (endpoint_ && !endpoint_->status().ok()) {
      plan_.OnSourceFailed(kSource, endpoint_->status());
    }

    const TimePoint now = Now();
    if (on_progress && now >= next_report) {
      on_progress({.counters = plan_.counters(), .seconds = Elapsed()});
      next_report = now + kReportEvery;
    }
    if (moved) last_event = now;
    if (now - last_event < kPollBeforeSleep) continue;
    const TimePoint until = std::min(std::get<Wait>(action).until, now + kReportEvery);
    ROUSE_RETURN_IF_ERROR(
        worker_->Wait(std::max(std::chrono::ceil<milliseconds>(until - now), milliseconds{1})));
  }
}

}  // namespace

Result<PullReport> Pull(const PullSource& source, RegisteredArena& arena,
                        const PullOptions& options, std::stop_token stop,
                        const ProgressCallback& on_progress) {
  ROUSE_RETURN_IF_ERROR(CheckSource(source));
  ROUSE_RETURN_IF_ERROR(memory::CheckManifest(source.rank.manifest, arena.arena().bytes(), true)
                            .WithContext("pull from " + source.name));
  auto session = Session::Start(source, arena, options);
  if (!session.ok()) return session.status().WithContext("pull from " + source.name);
  const Status status = (*session)->Run(stop, on_progress);
  const PullReport report = (*session)->Report();
  if (on_progress) on_progress({.counters = report.counters, .seconds = report.seconds});
  ROUSE_RETURN_IF_ERROR(status);
  return report;
}

}  // namespace rouse::transfer
