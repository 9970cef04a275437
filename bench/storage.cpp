// Reads a checkpoint into an arena once, as an agent that starts from storage does, and writes how
// long that took as one line of JSON. Driven by storage.py.

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <iostream>
#include <stdexcept>

#include "agent/storage/host_sink.h"
#include "agent/storage/reader.h"
#include "common/json.h"

namespace rouse {
namespace {

template <typename T>
T Must(Result<T> result) {
  if (!result.ok()) throw std::runtime_error(result.status().ToString());
  return *std::move(result);
}

double Since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

int Main(int argc, char** argv) {
  std::string folder;
  storage::ReadOptions options;
  std::uint64_t request_bytes = storage::kDefaultRequestBytes;
  bool threads_only = false;
  bool populate = false;
  CLI::App app("Reads a checkpoint into an arena, for storage.py");
  app.add_option("folder", folder)->required();
  app.add_option("--request-bytes", request_bytes);
  app.add_option("--reads-in-flight", options.reads_in_flight);
  app.add_option("--threads", options.threads);
  app.add_flag("--threads-only", threads_only, "no io_uring");
  app.add_flag("--populate", populate, "take the arena's memory before the first read");
  CLI11_PARSE(app, argc, argv);
  options.use_io_uring = !threads_only;

  const auto start = std::chrono::steady_clock::now();
  const auto files = Must(storage::CheckpointFiles::Open(folder, {}));
  const auto plan = Must(storage::PlanReads(files.checkpoint(), request_bytes));
  const double open_seconds = Since(start);
  const auto arena = Must(
      memory::Arena::Create({.bytes = plan.arena_bytes, .name = "bench", .populate = populate}));
  const double arena_seconds = Since(start) - open_seconds;
  storage::HostSink sink(*arena);
  const auto report = Must(storage::ReadCheckpoint(files, plan, sink, options, {}, {}));
  const json::Json line = {{"bytes", files.checkpoint().data_bytes()},
                           {"seconds", Since(start)},
                           {"openSeconds", open_seconds},
                           {"arenaSeconds", arena_seconds},
                           {"readSeconds", report.seconds},
                           {"bytesDirect", report.bytes_direct},
                           {"reads", report.reads},
                           {"way", report.way},
                           {"reason", report.reason}};
  std::cout << json::Dump(line) << std::endl;
  return 0;
}

}  // namespace
}  // namespace rouse

int main(int argc, char** argv) {
  try {
    return rouse::Main(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
