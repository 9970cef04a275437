// rouse-bench-fanout: simulates one fan-out and writes what came out as one line of JSON. Driven by
// ../fanout.py.

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <exception>
#include <iostream>
#include <map>

#include "bench/simulate_fanout/world.h"
#include "common/json.h"

namespace rouse::fanout {
namespace {

// The time by which each hundredth of the targets is ready.
json::Json Quantiles(const std::vector<double>& ready) {
  json::Json quantiles = json::Json::array();
  if (ready.empty()) return quantiles;
  for (std::size_t percent = 0; percent <= 100; ++percent) {
    quantiles.push_back(ready[(ready.size() - 1) * percent / 100]);
  }
  return quantiles;
}

int Main(int argc, char** argv) {
  Options options;
  const std::map<std::string, Mode> modes = {{"swarm", Mode::kSwarm},
                                             {"star", Mode::kStar},
                                             {"serve-when-complete", Mode::kServeWhenComplete}};
  CLI::App app("One source's weights to N instances, over a modelled fabric");
  app.add_option("--mode", options.mode, "swarm, star or serve-when-complete")
      ->transform(CLI::CheckedTransformer(modes));
  app.add_option("--targets", options.targets, "N");
  app.add_option("--dying", options.dying, "Share of the targets that die on the way");
  app.add_option("--arena-bytes", options.arena_bytes, "Bytes of one rank");
  app.add_option("--unit-bytes", options.unit_bytes, "Bytes of a chunk");
  app.add_option("--nic-rate", options.nic_rate, "Bytes per second and direction");
  app.add_option("--nvlink-rate", options.nvlink_rate, "The same inside a node");
  app.add_option("--instances-per-node", options.instances_per_node);
  app.add_option("--sources", options.sources_per_target, "Peers that a target is told of");
  app.add_option("--gets", options.gets_per_source, "Chunks that it asks of each at once");
  app.add_option("--refresh-us", options.refresh_us, "Between two looks at a peer with too little");
  app.add_option("--deadline-ms", options.deadline_ms, "For a piece");
  app.add_option("--seed", options.seed);
  CLI11_PARSE(app, argc, argv);

  const auto start = std::chrono::steady_clock::now();
  const Outcome outcome = World(options).Run();
  const std::chrono::duration<double> wall = std::chrono::steady_clock::now() - start;
  if (outcome.ready_seconds.empty()) {
    std::fprintf(stderr, "no instance got its weights: %u died, %u gave up\n", outcome.died,
                 outcome.failed);
    return 1;
  }
  std::cout << json::Dump({{"lastReadySeconds", outcome.ready_seconds.back()},
                           {"readySeconds", Quantiles(outcome.ready_seconds)},
                           {"ready", outcome.ready_seconds.size()},
                           {"died", outcome.died},
                           {"failed", outcome.failed},
                           {"sourceBytes", outcome.source_bytes},
                           {"mostBytes", outcome.most_bytes},
                           {"meanBytes", outcome.mean_bytes},
                           {"events", outcome.events},
                           {"wallSeconds", wall.count()}})
            << std::endl;
  return 0;
}

}  // namespace
}  // namespace rouse::fanout

int main(int argc, char** argv) {
  try {
    return rouse::fanout::Main(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
