// Reads a checkpoint into GPU memory, as an agent that starts from storage would, several times;
// one JSON object a line. Driven by gpu_storage.py.

#include <CLI/CLI.hpp>
#include <chrono>
#include <iostream>

#include "agent/cuda/copy_engine.h"
#include "agent/cuda/device_sink.h"
#include "agent/storage/reader.h"
#include "bench/gpu_bench.h"
#include "common/json.h"

using namespace rouse;

int main(int argc, char** argv) {
  std::string folder;
  std::uint64_t request_kib = 2048;
  cuda::DeviceSinkOptions staging;
  storage::ReadOptions options{.reads_in_flight = 20};
  bool threads_only = false;
  int rounds = 3;
  CLI::App app("Reads a checkpoint into GPU memory");
  app.add_option("folder", folder)->required();
  app.add_option("--request-kib", request_kib)->capture_default_str();
  app.add_option("--buffers", staging.buffers)->capture_default_str();
  app.add_option("--reads-in-flight", options.reads_in_flight)->capture_default_str();
  app.add_option("--threads", options.threads)->capture_default_str();
  app.add_flag("--threads-only", threads_only, "no io_uring");
  app.add_option("--rounds", rounds)->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  options.use_io_uring = !threads_only;
  staging.buffer_bytes = request_kib << 10;
  const auto device = Must(cuda::Device::Open(0));
  for (int round = 0; round < rounds; ++round) {
    const auto start = std::chrono::steady_clock::now();
    const auto files = Must(storage::CheckpointFiles::Open(folder, {}));
    const auto plan = Must(storage::PlanReads(files.checkpoint(), staging.buffer_bytes));
    const auto arena = Must(memory::Arena::Create(
        {.bytes = plan.arena_bytes, .memory = cuda::DeviceMemory(device), .name = "bench"}));
    const auto sink = Must(cuda::DeviceSink(device, *arena, staging));
    const double ready = Since(start);
    const auto report = Must(storage::ReadCheckpoint(files, plan, *sink, options, {}, {}));
    const double seconds = Since(start);
    // What arrived is what is in the files: the first and the last read, byte by byte.
    for (const storage::Read& read : {plan.reads.front(), plan.reads.back()}) {
      std::vector<char> expected(read.bytes);
      std::vector<std::byte> got(read.bytes);
      if (::pread(files.fd(read.shard), expected.data(), read.bytes,
                  static_cast<off_t>(read.file_offset)) != static_cast<ssize_t>(read.bytes) ||
          !cuda::Download(*device, got, arena->span().data() + read.arena_offset).ok() ||
          std::memcmp(expected.data(), got.data(), read.bytes) != 0) {
        std::cerr << "other bytes arrived" << std::endl;
        return 1;
      }
    }
    const auto bytes = static_cast<double>(files.checkpoint().data_bytes());
    std::cout << json::Dump({{"GBps", bytes / seconds / 1e9},
                             {"readGBps", bytes / report.seconds / 1e9},
                             {"seconds", seconds},
                             {"prepareSeconds", ready},
                             {"bytes", files.checkpoint().data_bytes()},
                             {"way", report.way},
                             {"bytesDirect", report.bytes_direct}})
              << std::endl;
  }
  return 0;
}
