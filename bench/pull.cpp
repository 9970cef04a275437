// Two ends of a pull in two processes, through the agent's own Publisher and Pull. Driven by
// pull.py.
//
//   source   publishes an arena, writes an OpenResponse as one line of JSON for each line it reads
//   target   reads an OpenResponse; for each further line pulls it and writes one line of JSON
//            (with --node-folder, which the source has too: as two agents of one node do)
//   local    writes how fast one thread digests and how fast an arena's memory is taken

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <stdexcept>

#include "agent/memory/copy_engine.h"
#include "agent/transfer/node_pull.h"
#include "agent/transfer/publisher.h"
#include "agent/transfer/pull.h"
#include "common/log.h"

namespace rouse {
namespace {

struct Options {
  std::uint64_t bytes = 1u << 30;
  std::uint64_t piece_bytes = 4u << 20;
  std::uint32_t window = 4;
  std::string node_folder;
  int threads = 2;
  bool unverified = false;
};

void Must(const Status& status) {
  if (!status.ok()) throw std::runtime_error(status.ToString());
}
template <typename T>
T Must(Result<T> result) {
  Must(result.status());
  return *std::move(result);
}

double Since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void Print(const json::Json& value) {
  std::cout << json::Dump(value) << std::endl;
}

std::shared_ptr<memory::Arena> Arena(const Options& options) {
  return Must(memory::Arena::Create({.bytes = options.bytes, .name = "bench", .populate = true}));
}

void Fill(std::span<std::byte> span) {
  std::uint64_t state = 1;
  for (std::size_t i = 0; i + 8 <= span.size(); i += 8) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    std::memcpy(span.data() + i, &state, 8);
  }
}

void Source(const Options& options) {
  const std::shared_ptr<memory::Arena> arena = Arena(options);
  Fill(arena->span());
  WeightManifest manifest;
  manifest.arena_bytes = arena->bytes();
  manifest.allocations = {{.offset = 0, .bytes = arena->bytes()}};
  manifest.chunk_digests = Must(memory::DigestChunks(*memory::HostCopyEngine(2), *arena,
                                                     {.chunk_bytes = manifest.chunk_bytes}));
  const auto publisher = Must(transfer::Publisher::Create(
      {.leases = {}, .node_folder = options.node_folder, .node_socket = "source.sock"}));
  Must(publisher->Publish(arena, std::move(manifest)));
  for (std::string line; std::getline(std::cin, line);) {
    Print(ToJson(Must(publisher->Open("bench/target"))));
  }
}

void NodeTarget(const Options& options, const OpenResponse& answer) {
  const transfer::NodeSource source = {
      "bench/source", options.node_folder + "/" + answer.node_socket, answer.lease};
  const RemoteRank& rank = answer.ranks.at(0);
  const auto arena = Arena(options);
  const auto engine = memory::HostCopyEngine(options.threads);
  for (std::string line; std::getline(std::cin, line);) {
    const auto start = std::chrono::steady_clock::now();
    const auto from = Must(
        transfer::ImportFromNode(source, rank, memory::HostMemory(), std::chrono::seconds(10)));
    if (options.unverified) {
      Must(engine->Copy(*from, *arena, {.digest = false},
                        [](const memory::Piece&) { return Status(); }));
      Print({{"bytes", arena->bytes()}, {"seconds", Since(start)}, {"transport", "node/host"}});
      continue;
    }
    const auto report = Must(
        transfer::CopyFromNode(source, rank.manifest, *from, *arena, *engine, {}, {}, nullptr));
    Print({{"bytes", report.counters.bytes_verified},
           {"seconds", Since(start)},
           {"transport", report.transport}});
  }
}

void Target(const Options& options) {
  std::string line;
  std::getline(std::cin, line);
  const OpenResponse answer = Must(OpenResponseFromJson(Must(json::Parse(line, "answer"))));
  if (!options.node_folder.empty()) return NodeTarget(options, answer);
  const transfer::PullSource source = {
      .name = "bench/source", .worker_address = answer.worker_address, .rank = answer.ranks.at(0)};
  const auto arena =
      transfer::RegisteredArena::Create(Must(ucx::Context::Create()), Arena(options));
  while (std::getline(std::cin, line)) {
    const auto report = Must(transfer::Pull(
        source, *arena, {.piece_bytes = options.piece_bytes, .window = options.window}, {},
        nullptr));
    Print({{"bytes", report.counters.bytes_verified},
           {"seconds", report.seconds},
           {"transport", report.transport}});
  }
}

void Local(const Options& options) {
  auto start = std::chrono::steady_clock::now();
  const auto arena = Arena(options);
  const double populate = Since(start);
  Fill(arena->span());
  start = std::chrono::steady_clock::now();
  Must(memory::DigestChunks(*memory::HostCopyEngine(1), *arena));
  Print({{"bytes", options.bytes}, {"populateSeconds", populate}, {"digestSeconds", Since(start)}});
}

int Main(int argc, char** argv) {
  Options options;
  CLI::App app("Two ends of a pull, for pull.py");
  app.require_subcommand(1);
  CLI::App* source = app.add_subcommand("source");
  CLI::App* target = app.add_subcommand("target");
  CLI::App* local = app.add_subcommand("local");
  for (CLI::App* command : {source, target, local}) command->add_option("--bytes", options.bytes);
  target->add_option("--piece-bytes", options.piece_bytes);
  target->add_option("--window", options.window);
  for (CLI::App* command : {source, target}) {
    command->add_option("--node-folder", options.node_folder);
  }
  target->add_option("--threads", options.threads);
  for (CLI::App* command : {source, target}) command->add_flag("--unverified", options.unverified);
  CLI11_PARSE(app, argc, argv);
  log::Init("bench-pull", log::Level::kError);
  if (*source) Source(options);
  if (*target) Target(options);
  if (*local) Local(options);
  return 0;
}

}  // namespace
}  // namespace rouse

int main(int argc, char** argv) {
  if (rouse::transfer::IsSourceProcess(argc, argv)) return rouse::transfer::RunSourceProcess();
  try {
    return rouse::Main(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
