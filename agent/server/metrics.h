// The agent's Prometheus metrics. Names and labels are part of what users' dashboards rely on.
//
// Thread-safe. Only what the agent knows is counted: reads by peers are one-sided, so a source
// counts the leases it gave, not bytes it sent.

#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "agent/startup/report.h"
#include "common/result.h"

namespace rouse::agent {

class Metrics {
 public:
  Metrics();
  ~Metrics();

  void SetState(AgentState state);
  void SetTimeline(const Timeline& timeline);
  void CountTransfer(bool ok, std::uint64_t bytes, std::uint64_t mismatches, double seconds,
                     const std::string& transport);
  /// A pull went over TCP although this node has RDMA.
  void CountFallback();
  /// How far the pull of a rank is.
  void SetPulled(std::uint64_t verified_bytes);
  /// A source of a pull was put aside, and why.
  void CountPutAside(StatusCode why);
  /// The agent has read, or tried to read, a checkpoint for its engine.
  void CountStorage(bool ok, std::uint64_t bytes, double seconds);
  void CountLease(bool opened);
  /// A rank's process was spawned although it was to be forked.
  void CountSpawn();
  /// The driver reported a GPU's failure; 0: it is lost.
  void CountXid(std::uint64_t xid);
  void CountEngineRequest(std::string_view type, bool ok);
  void CountReport(bool ok);
  /// The operator was asked for a certificate; it ends then, in seconds since 1970.
  void CountCertificate(bool ok);
  void SetCertificateEnd(std::int64_t seconds);
  void CountModelFiles(std::uint64_t fetched_bytes);
  /// A class of compile caches was installed, left out at the start, or published, or could not be.
  void CountBundle(std::string_view of, std::string_view outcome);
  void CountStateBytes(std::uint64_t fetched_bytes);
  /// Where this instance's caches of a class were found before its engine started.
  void CountLookup(std::string_view of, std::string_view found);
  /// A copy of another's caches was kept, could not be, or was given up, and why.
  void CountCopy(std::string_view outcome);
  void CountCopiedBytes(std::uint64_t fetched_bytes);
  /// What is kept for others.
  void SetKept(std::size_t bundles, std::uint64_t bytes);
  /// Of all that this agent holds: copies that others are to have and are not known to.
  void SetCopiesMissing(std::size_t copies);
  /// Lookups that the engine made in its caches.
  void CountLookups(const std::string& cache, std::uint64_t hits, std::uint64_t misses);
  /// One that found nothing although its cache had been installed, by the kind of what differed.
  void CountUnused(const std::string& cache, const std::string& factor);
  /// A wake has ended; a sleep has, well.
  void CountWake(bool ok);
  void CountSleep(double seconds);
  /// What the engine that sleeps still holds of its GPU's memory, or of several GPUs'.
  void SetGuardGpuBytes(double bytes);
  /// The engine has captured CUDA graphs after its start.
  void CountGraphs(double captured, double left);
  /// There is another engine, and it is not known yet how many it has left.
  void ForgetGraphsLeft();
  /// What changes by itself, set when somebody asks.
  void SetWeights(std::uint64_t published_bytes, std::uint64_t pulled_bytes, std::size_t leases);

  /// Prometheus text format.
  std::string Text() const;

 private:
  struct Families;
  std::unique_ptr<Families> families_;
};

}  // namespace rouse::agent
