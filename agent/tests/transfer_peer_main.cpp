// A peer for the tests of pulls, in a process that can be stopped and killed.
//
//   publish   publishes an arena with known bytes, writes an OpenResponse as one line of JSON, and
//   another for
//             each line it reads, until standard input ends
//   pull      reads such a line, pulls `--bytes` of it over and over, and writes "moving" once
//   bytes have
//             arrived and the outcome at the end

#include <CLI/CLI.hpp>
#include <cstdio>
#include <iostream>

#include "agent/tests/transfer_fixture.h"
#include "agent/transfer/publisher.h"
#include "agent/transfer/pull.h"
#include "common/log.h"

namespace rouse::transfer {
namespace {

struct Options {
  std::uint64_t bytes = 1u << 20;
  std::uint64_t slab_bytes = 64u << 20;
  std::uint64_t chunk_bytes = kChunkBytes;
  std::uint64_t seed = 1;
  std::int64_t flip = -1;
  std::uint64_t piece_bytes = 64u << 10;
  std::uint32_t window = 2;
};

void Publish(const Options& options) {
  std::string line;
  const auto arena = RandomArena(options.bytes, options.slab_bytes, options.seed);
  WeightManifest manifest = ManifestOf(*arena, 0, options.chunk_bytes);
  if (options.flip >= 0) arena->span()[static_cast<std::size_t>(options.flip)] ^= std::byte{0x10};
  const auto publisher = Must(Publisher::Create({}));
  Must(publisher->Publish(arena, std::move(manifest)));
  do {
    std::cout << json::Dump(ToJson(Must(publisher->Open("test/target")))) << std::endl;
  } while (std::getline(std::cin, line));
}

void PullAll(const Options& options) {
  std::string line;
  std::getline(std::cin, line);
  const OpenResponse answer = Must(OpenResponseFromJson(Must(json::Parse(line, "answer"))));
  const auto target = EmptyArena(Must(ucx::Context::Create()), options.bytes, options.slab_bytes);
  bool told = false;
  const auto report = Pull(Repeated(answer, options.bytes), *target,
                           {.piece_bytes = options.piece_bytes, .window = options.window}, {},
                           [&](const PullProgress& now) {
                             if (!told && now.counters.bytes_verified > 0)
                               std::cout << "moving" << std::endl;
                             told = told || now.counters.bytes_verified > 0;
                           });
  std::cout << report.status().ToString() << std::endl;
}

int Main(int argc, char** argv) {
  Options options;
  CLI::App app("A peer for the tests of pulls");
  app.require_subcommand(1);
  CLI::App* publish = app.add_subcommand("publish");
  CLI::App* pull = app.add_subcommand("pull");
  for (CLI::App* command : {publish, pull}) {
    command->add_option("--bytes", options.bytes);
    command->add_option("--slab-bytes", options.slab_bytes);
  }
  publish->add_option("--chunk-bytes", options.chunk_bytes);
  publish->add_option("--seed", options.seed);
  publish->add_option("--flip", options.flip,
                      "Flip a bit of this byte after the digests were taken");
  pull->add_option("--piece-bytes", options.piece_bytes);
  pull->add_option("--window", options.window);
  CLI11_PARSE(app, argc, argv);
  log::Init("transfer-peer", log::Level::kWarning);
  if (*publish) Publish(options);
  if (*pull) PullAll(options);
  return 0;
}

}  // namespace
}  // namespace rouse::transfer

int main(int argc, char** argv) {
  if (rouse::transfer::IsSourceProcess(argc, argv)) return rouse::transfer::RunSourceProcess();
  try {
    return rouse::transfer::Main(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
