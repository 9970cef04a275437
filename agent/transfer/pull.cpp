#include "agent/transfer/pull.h"

#include <algorithm>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "agent/memory/chunk_digest.h"
#include "agent/transfer/digester.h"
#include "agent/transfer/remote_source.h"
#include "agent/transfer/swarm_plan.h"
#include "agent/ucx/worker.h"

namespace rouse::transfer {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kReportEvery{100};
// How long to poll before sleeping; as in ucx::ProgressThread.
constexpr std::chrono::microseconds kPollBeforeSleep{50};

TimePoint Now() {
  return std::chrono::steady_clock::now();
}

SwarmPlanOptions PlanOptions(const WeightManifest& manifest, const PullOptions& options,
                             std::vector<std::uint64_t> boundaries, const Availability& available) {
  SwarmPlanOptions plan;
  plan.arena_bytes = manifest.arena_bytes;
  plan.chunk_bytes = manifest.chunk_bytes;
  plan.boundaries = std::move(boundaries);
  plan.piece_bytes = std::max<std::uint64_t>(options.piece_bytes, 1);
  plan.window = std::max({options.window, options.total_window, 1u});
  plan.max_unverified =
      plan.window + 2 * static_cast<std::uint32_t>(std::max(options.digest_threads, 1)) + 2;
  plan.max_damaged = std::max<std::uint32_t>(options.max_mismatches, 1);
  plan.progress_deadline = options.progress_deadline;
  plan.piece_deadline = options.piece_deadline;
  plan.starved_deadline = options.starved_deadline;
  plan.seed = options.seed;
  plan.have = available.Words();
  return plan;
}

// Whether nothing else is to be done at this moment.
bool IsLast(const SwarmAction& action) {
  return std::holds_alternative<Wait>(action) || std::holds_alternative<Finish>(action) ||
         std::holds_alternative<Fail>(action);
}

// One pull under way. Members are destroyed in reverse: connections close, after which nothing
// writes to the arena; the digest threads end before the worker they signal.
class Session {
 public:
  static Result<std::unique_ptr<Session>> Start(const WeightManifest& manifest,
                                                PullSources& sources, RegisteredArena& arena,
                                                Availability& available, const PullOptions& options,
                                                const PullHooks& hooks) {
    ROUSE_ASSIGN_OR_RETURN(auto worker, ucx::Worker::Create(arena.context()));
    return std::unique_ptr<Session>(
        new Session(manifest, sources, arena, available, options, hooks, std::move(worker)));
  }
  ~Session() { sources_.OnChange(nullptr); }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  Status Run(const std::stop_token& stop);

  PullReport Report() const {
    return {.counters = plan_.counters(), .seconds = Elapsed(), .transport = transport_};
  }
  std::vector<SourceShare> Shares() const {
    std::vector<SourceShare> shares;
    for (const SourceReport& source : plan_.Sources()) {
      shares.push_back({.name = source.name,
                        .bytes_arrived = source.bytes_arrived,
                        .bytes_verified = source.bytes_verified,
                        .damaged = source.damaged});
    }
    return shares;
  }

 private:
  // By SourceId; one that was put aside has no connection.
  struct Source {
    PullSources::Id id = 0;
    std::shared_ptr<const OpenedPeer> peer;
    std::unique_ptr<RemoteSource> remote;
  };

  Session(const WeightManifest& manifest, PullSources& sources, RegisteredArena& arena,
          Availability& available, const PullOptions& options, const PullHooks& hooks,
          std::unique_ptr<ucx::Worker> worker)
      : manifest_(manifest),
        sources_(sources),
        arena_(arena),
        available_(available),
        options_(options),
        hooks_(hooks),
        started_(Now()),
        local_starts_(Starts(arena.arena().SlabBytes())),
        plan_(PlanOptions(manifest, options, local_starts_, available)),
        worker_(std::move(worker)),
        digester_(options.digest_threads, manifest.chunk_digests, [this] { worker_->Signal(); }) {
    sources_.OnChange([this] { worker_->Signal(); });
  }

  double Elapsed() const { return std::chrono::duration<double>(Now() - started_).count(); }

  void LookAtSources();
  void Join(PullSources::Id id, std::shared_ptr<const OpenedPeer> peer);
  Status Perform(const SwarmAction& action);
  Status StartRead(const StartGet& get);
  bool CollectReads();
  bool CollectDigests();

  const WeightManifest& manifest_;
  PullSources& sources_;
  RegisteredArena& arena_;
  Availability& available_;
  const PullOptions& options_;
  const PullHooks& hooks_;
  const TimePoint started_;
  const std::vector<std::uint64_t> local_starts_;
  SwarmPlan plan_;
  std::string transport_;
  std::unique_ptr<ucx::Worker> worker_;
  Digester digester_;
  std::vector<Source> joined_;
  std::optional<std::uint64_t> seen_changes_;
};

// Takes in those that have come, and fails those that have gone.
void Session::LookAtSources() {
  const std::uint64_t changes = sources_.changes();
  if (changes == seen_changes_) return;
  seen_changes_ = changes;
  auto now = sources_.Now();
  for (SourceId source = 0; source < joined_.size(); ++source) {
    if (now.erase(joined_[source].id) == 0 && joined_[source].remote != nullptr) {
      plan_.OnSourceFailed(source, Unavailable("its lease was lost"));
    }
  }
  for (auto& [id, peer] : now) Join(id, std::move(peer));
}

void Session::Join(PullSources::Id id, std::shared_ptr<const OpenedPeer> peer) {
  const auto rank = std::find_if(
      peer->ranks.begin(), peer->ranks.end(),
      [&](const RemoteRank& candidate) { return candidate.manifest.rank == manifest_.rank; });
  Source source{.id = id, .peer = peer, .remote = nullptr};
  Status failed;
  bool complete = false;
  if (rank == peer->ranks.end() || rank->manifest.chunk_digests != manifest_.chunk_digests ||
      rank->manifest.arena_bytes != manifest_.arena_bytes ||
      rank->manifest.chunk_bytes != manifest_.chunk_bytes) {
    failed = FailedPrecondition("its weights of rank " + std::to_string(manifest_.rank) +
                                " are other bytes than those of the pull");
  } else {
    complete = !rank->availability;
    failed = CheckSource(peer->name, peer->worker_address, *rank);
    if (failed.ok()) failed = CheckKeys(*rank);
  }
  if (failed.ok()) {
    auto remote = RemoteSource::Connect(*worker_, peer->worker_address, *rank);
    failed = remote.status();
    if (remote.ok()) source.remote = *std::move(remote);
  }
  const SourceId added = plan_.AddSource(
      {.name = peer->name,
       .tier = peer->tier,
       .max_in_flight = std::max<std::uint32_t>(options_.window, 1),
       .complete = complete,
       .boundaries = source.remote ? source.remote->boundaries() : std::vector<std::uint64_t>()},
      Now());
  joined_.push_back(std::move(source));
  if (!failed.ok()) plan_.OnSourceFailed(added, failed);
}

Status Session::Perform(const SwarmAction& action) {
  if (const auto* get = std::get_if<StartGet>(&action)) return StartRead(*get);
  if (const auto* refresh = std::get_if<RefreshAvailability>(&action)) {
    joined_[refresh->source].remote->ReadAvailability();
  }
  if (const auto* aside = std::get_if<PutAside>(&action)) {
    Source& source = joined_[aside->source];
    source.remote.reset();  // After this it writes nothing to the arena.
    if (hooks_.on_put_aside) hooks_.on_put_aside(source.id, aside->why);
  }
  return {};
}

Status Session::StartRead(const StartGet& get) {
  ROUSE_ASSIGN_OR_RETURN(const ucx::RegisteredMemory* const memory,
                         arena_.Slab(IndexOf(local_starts_, get.offset)));
  joined_[get.source].remote->Read(get.piece, get.offset,
                                   arena_.arena().span().subspan(get.offset, get.bytes), *memory);
  return {};
}

bool Session::CollectReads() {
  bool any = false;
  for (SourceId id = 0; id < joined_.size(); ++id) {
    RemoteSource* const remote = joined_[id].remote.get();
    if (remote == nullptr) continue;
    for (const RemoteSource::Arrival& arrival : remote->TakeArrivals()) {
      any = true;
      if (!arrival.status.ok()) {
        plan_.OnSourceFailed(id, arrival.status);
        continue;
      }
      if (transport_.empty()) transport_ = remote->Transport();
      if (const auto chunk = plan_.OnArrived(arrival.piece, Now())) {
        const auto range =
            memory::ChunkRangeOf(*chunk, manifest_.arena_bytes, manifest_.chunk_bytes);
        digester_.Submit(*chunk, arena_.arena().span().subspan(range.offset, range.bytes));
      }
    }
    const auto words = remote->TakeAvailability();
    if (!words.ok()) {
      plan_.OnSourceFailed(id, words.status());
    } else if (*words) {
      any = true;
      plan_.OnAvailability(id, **words, Now());
    }
    if (!remote->status().ok()) plan_.OnSourceFailed(id, remote->status());
  }
  return any;
}

bool Session::CollectDigests() {
  const std::vector<DigestResult> results = digester_.Take();
  for (const DigestResult& result : results) {
    if (result.matches) available_.Set(result.chunk);
    plan_.OnDigest(result.chunk, result.matches);
  }
  return !results.empty();
}

Status Session::Run(const std::stop_token& stop) {
  TimePoint next_report = started_ + kReportEvery;
  bool reported = false;  // That something has arrived.
  TimePoint last_event = Now();
  for (;;) {
    if (stop.stop_requested()) return Status(StatusCode::kCancelled, "the pull was cancelled");
    LookAtSources();
    SwarmAction action = plan_.Next(Now());
    for (; !IsLast(action); action = plan_.Next(Now())) ROUSE_RETURN_IF_ERROR(Perform(action));
    if (std::holds_alternative<Finish>(action)) return {};
    if (const Fail* fail = std::get_if<Fail>(&action)) return fail->status;

    bool moved = worker_->Progress();
    moved = CollectReads() || moved;
    moved = CollectDigests() || moved;

    const TimePoint now = Now();
    const bool first = !reported && plan_.counters().bytes_verified > 0;
    if (hooks_.on_progress && (first || now >= next_report)) {
      reported = reported || first;
      hooks_.on_progress({.counters = plan_.counters(), .seconds = Elapsed()});
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

Result<PullReport> PullFromMany(const WeightManifest& manifest, PullSources& sources,
                                RegisteredArena& arena, Availability& available,
                                const PullOptions& options, std::stop_token stop,
                                const PullHooks& hooks) {
  ROUSE_RETURN_IF_ERROR(memory::CheckManifest(manifest, arena.arena().bytes(), true));
  ROUSE_ASSIGN_OR_RETURN(auto session,
                         Session::Start(manifest, sources, arena, available, options, hooks));
  const Status status = session->Run(stop);
  const PullReport report = session->Report();
  if (hooks.on_progress) {
    hooks.on_progress({.counters = report.counters, .seconds = report.seconds});
  }
  if (hooks.on_end) hooks.on_end(session->Shares());
  ROUSE_RETURN_IF_ERROR(status);
  return report;
}

Result<PullReport> Pull(const PullSource& source, RegisteredArena& arena,
                        const PullOptions& options, std::stop_token stop,
                        const ProgressCallback& on_progress) {
  ROUSE_RETURN_IF_ERROR(CheckSource(source));
  ROUSE_ASSIGN_OR_RETURN(auto available,
                         Availability::Create(source.rank.manifest.chunk_digests.size()));
  PullSources sources;
  sources.Add(
      {.name = source.name, .worker_address = source.worker_address, .ranks = {source.rank}});
  PullOptions one = options;
  one.total_window = options.window;
  one.starved_deadline = milliseconds(0);  // no other source will come
  auto pulled = PullFromMany(source.rank.manifest, sources, arena, *available, one, std::move(stop),
                             {.on_progress = on_progress});
  if (!pulled.ok()) return pulled.status().WithContext("pull from " + source.name);
  return pulled;
}

}  // namespace rouse::transfer
