#include "agent/server/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

namespace rouse::agent {

using prometheus::BuildCounter;
using prometheus::BuildGauge;
using prometheus::BuildHistogram;
using prometheus::Counter;
using prometheus::Family;
using prometheus::Gauge;
using prometheus::Histogram;

struct Metrics::Families {
  prometheus::Registry registry;
  Family<Gauge>& state = BuildGauge()
                             .Name("rouse_agent_state")
                             .Help("1 for the state the agent is in, 0 for the others.")
                             .Register(registry);
  Family<Gauge>& phase = BuildGauge()
                             .Name("rouse_phase_seconds")
                             .Help("Length of each phase of this instance's start.")
                             .Register(registry);
  Family<Gauge>& start = BuildGauge()
                             .Name("rouse_start_seconds")
                             .Help("From the decision to start this instance to its first token.")
                             .Register(registry);
  Family<Counter>& pull_bytes = BuildCounter()
                                    .Name("rouse_pull_bytes_total")
                                    .Help("Weight bytes that arrived from peers, by transport.")
                                    .Register(registry);
  Family<Histogram>& pull_seconds = BuildHistogram()
                                        .Name("rouse_pull_seconds")
                                        .Help("Time to pull and verify one rank's weights.")
                                        .Register(registry);
  Family<Counter>& transport_seconds =
      BuildCounter()
          .Name("rouse_pull_transport_seconds_total")
          .Help("Seconds of the pulls whose bytes are in rouse_pull_bytes_total, by transport.")
          .Register(registry);
  Family<Counter>& storage_bytes =
      BuildCounter()
          .Name("rouse_storage_read_bytes_total")
          .Help("Bytes of checkpoints that the agent has read for its engine.")
          .Register(registry);
  Family<Histogram>& storage_seconds =
      BuildHistogram()
          .Name("rouse_storage_read_seconds")
          .Help("Time to read a checkpoint for the engine, at the engine's pace.")
          .Register(registry);
  Family<Counter>& mismatches = BuildCounter()
                                    .Name("rouse_digest_mismatch_total")
                                    .Help("Chunks that arrived with a wrong digest.")
                                    .Register(registry);
  Family<Counter>& fallbacks =
      BuildCounter()
          .Name("rouse_pull_fallbacks_total")
          .Help("Transfers that went over TCP although this node has an active RDMA port.")
          .Register(registry);
  Family<Gauge>& pull_verified =
      BuildGauge()
          .Name("rouse_pull_verified_bytes")
          .Help("Bytes that the pull under way, or the last one, has put in place.")
          .Register(registry);
  Family<Counter>& put_aside = BuildCounter()
                                   .Name("rouse_pull_sources_put_aside_total")
                                   .Help("Sources that a pull went on without, by cause.")
                                   .Register(registry);
  Family<Gauge>& weights = BuildGauge()
                               .Name("rouse_weights_bytes")
                               .Help("Weight bytes held, by how they came.")
                               .Register(registry);
  Family<Gauge>& leases_open = BuildGauge()
                                   .Name("rouse_leases_open")
                                   .Help("Peers that may read this agent's weights now.")
                                   .Register(registry);
  Family<Counter>& leases = BuildCounter()
                                .Name("rouse_leases_total")
                                .Help("Requests of peers to open the weights, by outcome.")
                                .Register(registry);
  Family<Counter>& requests = BuildCounter()
                                  .Name("rouse_engine_requests_total")
                                  .Help("Requests on the engine socket, by type and outcome.")
                                  .Register(registry);
  Family<Counter>& spawns = BuildCounter()
                                .Name("rouse_engine_spawns_total")
                                .Help("Processes of the engine that could not be forked.")
                                .Register(registry);
  Family<Counter>& xids = BuildCounter()
                              .Name("rouse_gpu_xids_total")
                              .Help("Xids that the driver reported of the engine's GPUs; 0: lost.")
                              .Register(registry);
  Family<Counter>& reports = BuildCounter()
                                 .Name("rouse_reports_total")
                                 .Help("Reports to the operator, by outcome.")
                                 .Register(registry);
  Family<Counter>& certificates = BuildCounter()
                                      .Name("rouse_certificates_total")
                                      .Help("Certificates asked of the operator, by outcome.")
                                      .Register(registry);
  Family<Gauge>& certificate_end = BuildGauge()
                                       .Name("rouse_certificate_end_timestamp_seconds")
                                       .Help("When this agent's certificate ends.")
                                       .Register(registry);
  Family<Counter>& file_bytes = BuildCounter()
                                    .Name("rouse_model_file_bytes_total")
                                    .Help("Bytes of small model files fetched from peers.")
                                    .Register(registry);
  Family<Counter>& bundles =
      BuildCounter()
          .Name("rouse_state_bundles_total")
          .Help("Classes of compile caches that were installed, missing at a start, or published.")
          .Register(registry);
  Family<Counter>& state_bytes = BuildCounter()
                                     .Name("rouse_state_fetched_bytes_total")
                                     .Help("Bytes of compile caches fetched from peers.")
                                     .Register(registry);
  Family<Counter>& finds =
      BuildCounter()
          .Name("rouse_state_lookups_total")
          .Help("Classes of compile caches looked for before the engine started, by who had them.")
          .Register(registry);
  Family<Counter>& copies =
      BuildCounter()
          .Name("rouse_state_copies_total")
          .Help("Copies of others' compile caches: kept, failed, refused, or given up and why.")
          .Register(registry);
  Family<Counter>& copied_bytes = BuildCounter()
                                      .Name("rouse_state_copied_bytes_total")
                                      .Help("Bytes of compile caches fetched to keep a copy.")
                                      .Register(registry);
  Family<Gauge>& kept_bundles = BuildGauge()
                                    .Name("rouse_state_kept_bundles")
                                    .Help("Bundles of compile caches kept for others.")
                                    .Register(registry);
  Family<Gauge>& kept_bytes = BuildGauge()
                                  .Name("rouse_state_kept_bytes")
                                  .Help("Bytes of compile caches kept for others.")
                                  .Register(registry);
  Family<Gauge>& copies_missing =
      BuildGauge()
          .Name("rouse_state_copies_missing")
          .Help("Copies of what this agent holds that other agents are to have, and lack.")
          .Register(registry);
  Family<Counter>& lookups = BuildCounter()
                                 .Name("rouse_cache_lookups_total")
                                 .Help("Lookups of the engine in its compile caches, by result.")
                                 .Register(registry);
  Family<Counter>& unused =
      BuildCounter()
          .Name("rouse_cache_installed_misses_total")
          .Help("Lookups that missed in caches that had been installed, by what differed.")
          .Register(registry);
  Family<Counter>& wakes = BuildCounter()
                               .Name("rouse_wakes_total")
                               .Help("Wakes of this instance, by outcome.")
                               .Register(registry);
  Family<Histogram>& sleep_seconds =
      BuildHistogram()
          .Name("rouse_sleep_seconds")
          .Help("From being told to sleep to having given the weights' memory back.")
          .Register(registry);
  Family<Gauge>& guard_gpu_bytes =
      BuildGauge()
          .Name("rouse_guard_gpu_bytes")
          .Help("GPU memory in use when the engine fell asleep last, all of its GPUs together.")
          .Register(registry);
  Family<Counter>& graphs =
      BuildCounter()
          .Name("rouse_graphs_captured_total")
          .Help("CUDA graphs that the engine captured after its start, as it was told to.")
          .Register(registry);
  Family<Gauge>& graphs_left = BuildGauge()
                                   .Name("rouse_graphs_left")
                                   .Help("CUDA graphs that the engine has yet to capture.")
                                   .Register(registry);
  Histogram::BucketBoundaries pull_buckets{0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300};
};

namespace {

std::string Outcome(bool ok) {
  return ok ? "success" : "error";
}

double Seconds(std::int64_t us) {
  return static_cast<double>(us) / 1e6;
}

}  // namespace

Metrics::Metrics() : families_(std::make_unique<Families>()) {
  // Series that are there from the first scrape, so that a rate over them is right.
  families_->mismatches.Add({});
  families_->fallbacks.Add({});
  families_->spawns.Add({});
  for (const char* cause : {"damaged", "slow", "lost"}) {
    families_->put_aside.Add({{"cause", cause}});
  }
  for (const bool ok : {true, false}) {
    families_->leases.Add({{"outcome", Outcome(ok)}});
    families_->reports.Add({{"outcome", Outcome(ok)}});
    families_->pull_seconds.Add({{"outcome", Outcome(ok)}}, families_->pull_buckets);
  }
  for (const bool ok : {true, false}) families_->wakes.Add({{"outcome", Outcome(ok)}});
  families_->file_bytes.Add({});
  families_->state_bytes.Add({});
  families_->copied_bytes.Add({});
  for (const char* outcome : {"kept", "failed", "refused", "surplus", "unused", "displaced"}) {
    families_->copies.Add({{"outcome", outcome}});
  }
  SetKept(0, 0);
  SetCopiesMissing(0);
  families_->storage_bytes.Add({});
  SetState(AgentState::kStarting);
  SetWeights(0, 0, 0);
}

Metrics::~Metrics() = default;

void Metrics::SetState(AgentState state) {
  for (const auto& [value, name] : kAgentStates) {
    families_->state.Add({{"state", std::string(name)}}).Set(value == state ? 1 : 0);
  }
}

void Metrics::SetTimeline(const Timeline& timeline) {
  const std::string path(ToString(timeline.path));
  for (const Span& phase : timeline.phases) {
    families_->phase.Add({{"path", path}, {"phase", phase.name}})
        .Set(Seconds(phase.end_us - phase.start_us));
  }
  families_->start.Add({{"path", path}}).Set(Seconds(timeline.total_us));
}

void Metrics::CountTransfer(bool ok, std::uint64_t bytes, std::uint64_t mismatches, double seconds,
                            const std::string& transport) {
  if (bytes > 0) {
    const prometheus::Labels by{{"transport", transport.empty() ? "unknown" : transport}};
    families_->pull_bytes.Add(by).Increment(static_cast<double>(bytes));
    families_->transport_seconds.Add(by).Increment(seconds);
  }
  families_->mismatches.Add({}).Increment(static_cast<double>(mismatches));
  families_->pull_seconds.Add({{"outcome", Outcome(ok)}}, families_->pull_buckets).Observe(seconds);
}

void Metrics::CountFallback() {
  families_->fallbacks.Add({}).Increment();
}

void Metrics::CountSpawn() {
  families_->spawns.Add({}).Increment();
}

void Metrics::SetPulled(std::uint64_t verified_bytes) {
  families_->pull_verified.Add({}).Set(static_cast<double>(verified_bytes));
}

void Metrics::CountPutAside(StatusCode why) {
  const char* const cause = why == StatusCode::kDataLoss           ? "damaged"
                            : why == StatusCode::kDeadlineExceeded ? "slow"
                                                                   : "lost";
  families_->put_aside.Add({{"cause", cause}}).Increment();
}

void Metrics::CountStorage(bool ok, std::uint64_t bytes, double seconds) {
  families_->storage_bytes.Add({}).Increment(static_cast<double>(bytes));
  families_->storage_seconds.Add({{"outcome", Outcome(ok)}}, families_->pull_buckets)
      .Observe(seconds);
}

void Metrics::CountLease(bool opened) {
  families_->leases.Add({{"outcome", Outcome(opened)}}).Increment();
}

void Metrics::CountXid(std::uint64_t xid) {
  families_->xids.Add({{"xid", std::to_string(xid)}}).Increment();
}

void Metrics::CountEngineRequest(std::string_view type, bool ok) {
  families_->requests.Add({{"type", std::string(type)}, {"outcome", Outcome(ok)}}).Increment();
}

void Metrics::CountReport(bool ok) {
  families_->reports.Add({{"outcome", Outcome(ok)}}).Increment();
}

void Metrics::CountCertificate(bool ok) {
  families_->certificates.Add({{"outcome", Outcome(ok)}}).Increment();
}

void Metrics::SetCertificateEnd(std::int64_t seconds) {
  families_->certificate_end.Add({}).Set(static_cast<double>(seconds));
}

void Metrics::CountModelFiles(std::uint64_t fetched_bytes) {
  families_->file_bytes.Add({}).Increment(static_cast<double>(fetched_bytes));
}

void Metrics::CountBundle(std::string_view of, std::string_view outcome) {
  families_->bundles.Add({{"class", std::string(of)}, {"outcome", std::string(outcome)}})
      .Increment();
}

void Metrics::CountStateBytes(std::uint64_t fetched_bytes) {
  families_->state_bytes.Add({}).Increment(static_cast<double>(fetched_bytes));
}

void Metrics::CountLookup(std::string_view of, std::string_view found) {
  families_->finds.Add({{"class", std::string(of)}, {"found", std::string(found)}}).Increment();
}

void Metrics::CountCopy(std::string_view outcome) {
  families_->copies.Add({{"outcome", std::string(outcome)}}).Increment();
}

void Metrics::CountCopiedBytes(std::uint64_t fetched_bytes) {
  families_->copied_bytes.Add({}).Increment(static_cast<double>(fetched_bytes));
}

void Metrics::SetKept(std::size_t bundles, std::uint64_t bytes) {
  families_->kept_bundles.Add({}).Set(static_cast<double>(bundles));
  families_->kept_bytes.Add({}).Set(static_cast<double>(bytes));
}

void Metrics::SetCopiesMissing(std::size_t copies) {
  families_->copies_missing.Add({}).Set(static_cast<double>(copies));
}

void Metrics::CountLookups(const std::string& cache, std::uint64_t hits, std::uint64_t misses) {
  families_->lookups.Add({{"cache", cache}, {"result", "hit"}})
      .Increment(static_cast<double>(hits));
  families_->lookups.Add({{"cache", cache}, {"result", "miss"}})
      .Increment(static_cast<double>(misses));
}

void Metrics::CountUnused(const std::string& cache, const std::string& factor) {
  families_->unused.Add({{"cache", cache}, {"factor", factor}}).Increment();
}

void Metrics::CountWake(bool ok) {
  families_->wakes.Add({{"outcome", Outcome(ok)}}).Increment();
}

void Metrics::CountSleep(double seconds) {
  families_->sleep_seconds.Add({}, families_->pull_buckets).Observe(seconds);
}

void Metrics::SetGuardGpuBytes(double bytes) {
  families_->guard_gpu_bytes.Add({}).Set(bytes);
}

void Metrics::CountGraphs(double captured, double left) {
  families_->graphs.Add({}).Increment(captured);
  families_->graphs_left.Add({}).Set(left);
}

void Metrics::ForgetGraphsLeft() {
  families_->graphs_left.Remove(&families_->graphs_left.Add({}));
}

void Metrics::SetWeights(std::uint64_t published_bytes, std::uint64_t pulled_bytes,
                         std::size_t leases) {
  families_->weights.Add({{"role", "published"}}).Set(static_cast<double>(published_bytes));
  families_->weights.Add({{"role", "pulled"}}).Set(static_cast<double>(pulled_bytes));
  families_->leases_open.Add({}).Set(static_cast<double>(leases));
}

std::string Metrics::Text() const {
  return prometheus::TextSerializer().Serialize(families_->registry.Collect());
}

}  // namespace rouse::agent
