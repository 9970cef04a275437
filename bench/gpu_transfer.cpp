// Moves an arena from one process's GPU memory to another's, as two agents of one node do, beside
// what the driver does by itself. Driven by gpu_transfer.py, which wants one JSON object a line.

#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <numeric>

#include "agent/cuda/copy_engine.h"
#include "agent/cuda/device.h"
#include "agent/cuda/handles.h"
#include "agent/transfer/node_pull.h"
#include "agent/transfer/node_share.h"
#include "bench/gpu_bench.h"

namespace {

using namespace rouse;
using Clock = std::chrono::steady_clock;

struct Options {
  std::uint64_t gib = 40;
  std::uint64_t slab_mib = 1024;
  int rounds = 5;
  int source_gpu = 0;
  int target_gpu = 0;
};

template <typename F>
double Seconds(F&& run) {
  const auto started = Clock::now();
  run();
  return Since(started);
}

void Say(const std::string& what, double value) {
  std::cout << json::Dump({{"what", what}, {"value", value}}) << std::endl;
}

class Token {
 public:
  explicit Token(int fd) : fd_(fd) {}
  void Give() const {
    const char byte = 1;
    if (::write(fd_, &byte, 1) != 1) std::exit(1);
  }
  void Await() const {
    char byte = 0;
    if (::read(fd_, &byte, 1) != 1) std::exit(1);
  }

 private:
  int fd_;
};

memory::ArenaOptions Shape(const Options& options, std::shared_ptr<const cuda::Device> device) {
  return {.bytes = options.gib << 30,
          .memory = cuda::DeviceMemory(std::move(device)),
          .slab_bytes = options.slab_mib << 20,
          .name = "bench"};
}

int Source(const Options& options, const std::string& folder, const Token& token) {
  const auto device = Must(cuda::Device::Open(options.source_gpu));
  std::unique_ptr<memory::Arena> arena;
  arena = Must(memory::Arena::Create(Shape(options, device)));
  Fill(*device, *arena);
  const auto engine = Must(cuda::DeviceCopyEngine(device));
  RemoteRank rank;
  rank.manifest.arena_bytes = arena->bytes();
  for (int round = 0; round < options.rounds; ++round) {
    const double seconds =
        Seconds([&] { rank.manifest.chunk_digests = Must(memory::DigestChunks(*engine, *arena)); });
    Say("digest", static_cast<double>(arena->bytes()) / seconds / 1e9);
  }
  // A sample on the CPU: what the GPU says must be what every agent would say.
  std::vector<std::byte> chunk(kChunkBytes);
  for (const std::size_t i : {std::size_t{0}, rank.manifest.chunk_digests.size() - 1}) {
    Must(cuda::Download(*device, chunk, arena->span().data() + i * kChunkBytes));
    if (memory::DigestChunk(chunk) != rank.manifest.chunk_digests[i]) {
      Must(DataLoss("digest of chunk " + std::to_string(i) + " differs from the CPU's"));
    }
  }
  std::ofstream(folder + "/manifest") << json::Dump(ToJson(rank.manifest));
  const auto share = Must(transfer::NodeShare::Start(
      folder, "source.sock",
      [&](const transfer::NodeRequest& request) -> Result<transfer::SharedSlabs> {
        transfer::SharedSlabs slabs{.memory = "cuda", .fds = {}};
        for (std::size_t i = request.first; i < request.first + request.count; ++i) {
          ROUSE_ASSIGN_OR_RETURN(auto fd, arena->slab(i).DuplicateFd());
          slabs.fds.push_back(std::move(fd));
        }
        return slabs;
      }));
  token.Give();
  token.Await();
  return 0;
}

// What the driver does with the same two ranges: `streams` streams, a slab a call.
double DriverCopy(const cuda::Device& device, const memory::Arena& from, memory::Arena& to,
                  std::size_t count) {
  const cuda::Current current(device);
  const cuda::Driver& driver = device.driver();
  std::vector<cuda::Stream> streams;
  for (std::size_t i = 0; i < count; ++i) streams.push_back(Must(cuda::MakeStream(driver)));
  return Seconds([&] {
    for (std::size_t i = 0; i < to.slab_count(); ++i) {
      const std::uint64_t at = i * to.slab_bytes();
      Must(cuda::ToStatus(
          driver,
          driver.cuMemcpyDtoDAsync(reinterpret_cast<CUdeviceptr>(to.span().data()) + at,
                                   reinterpret_cast<CUdeviceptr>(from.span().data()) + at,
                                   to.SlabSpan(i).size(), streams[i % count].get()),
          "copy"));
    }
    for (const auto& stream : streams) {
      Must(cuda::ToStatus(driver, driver.cuStreamSynchronize(stream.get()), "wait"));
    }
  });
}

// What the kernel counts as this process's memory, in MiB. Of what the driver brings, its libraries
// are in the file-backed part, its own heap in the anonymous one, and what it shares with the
// kernel in the shared one.
void SayResident(const std::string& when) {
  const std::pair<std::string_view, std::string> parts[] = {
      {"VmRSS:", "resident memory"},
      {"RssAnon:", "resident memory, anonymous"},
      {"RssFile:", "resident memory, file-backed"},
      {"RssShmem:", "resident memory, shared"}};
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    for (const auto& [key, what] : parts) {
      if (line.starts_with(key)) Say(what + when, std::stod(line.substr(key.size())) / 1024);
    }
  }
}

int Target(const Options& options, const std::string& folder, const Token& token) {
  std::shared_ptr<const cuda::Device> device;
  SayResident(" before the device is opened");
  Say("open device", Seconds([&] { device = Must(cuda::Device::Open(options.target_gpu)); }));
  std::cout << json::Dump({{"gpu", device->name()}}) << std::endl;
  std::unique_ptr<memory::CopyEngine> engine;
  Say("prepare copy engine", Seconds([&] { engine = Must(cuda::DeviceCopyEngine(device)); }));
  token.Await();
  std::ifstream file(folder + "/manifest");
  const std::string text((std::istreambuf_iterator<char>(file)), {});
  RemoteRank rank;
  rank.manifest = Must(ManifestFromJson(Must(json::Parse(text, "manifest")), "manifest"));
  for (std::uint64_t i = 0; i < (options.gib << 10) / options.slab_mib; ++i) {
    rank.slabs.push_back({.bytes = options.slab_mib << 20});
  }
  const transfer::NodeSource from{"bench/source", folder + "/source.sock", "lease"};
  const auto bytes = static_cast<double>(options.gib << 30);
  const auto nothing = [](const memory::Piece&) { return Status(); };
  for (int round = 0; round < options.rounds; ++round) {
    // The driver clears what was freed a moment ago.
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    std::unique_ptr<memory::Arena> to;
    std::unique_ptr<memory::Arena> imported;
    Say("create and map slabs",
        Seconds([&] { to = Must(memory::Arena::Create(Shape(options, device))); }));
    Say("import and map slabs", Seconds([&] {
          imported = Must(transfer::ImportFromNode(from, rank, cuda::DeviceMemory(device),
                                                   std::chrono::seconds(10)));
        }));
    Say("device copy, 1 stream", bytes / DriverCopy(*device, *imported, *to, 1) / 1e9);
    Say("device copy, 4 streams", bytes / DriverCopy(*device, *imported, *to, 4) / 1e9);
    Say("pull, not verified", bytes / Seconds([&] {
                                Must(engine->Copy(*imported, *to, {.digest = false}, nothing));
                              }) / 1e9);
    Say("pull, verified", bytes / Seconds([&] {
                            Must(transfer::CopyFromNode(from, rank.manifest, *imported, *to,
                                                        *engine, {}, {}, nullptr));
                          }) / 1e9);
    Say("unmap imported slabs", Seconds([&] { imported.reset(); }));
    Say("release slabs", Seconds([&] { to.reset(); }));
  }
  SayResident("");
  token.Give();
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app("Copies GPU memory between two processes of one node");
  app.add_option("--gib", options.gib)->capture_default_str();
  app.add_option("--slab-mib", options.slab_mib)->capture_default_str();
  app.add_option("--rounds", options.rounds)->capture_default_str();
  app.add_option("--source-gpu", options.source_gpu)->capture_default_str();
  app.add_option("--target-gpu", options.target_gpu)->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  std::string folder = (std::filesystem::temp_directory_path() / "rouse-bench-XXXXXX").string();
  if (::mkdtemp(folder.data()) == nullptr) return 1;
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0) return 1;
  const pid_t source = ::fork();  // before either has a CUDA context
  if (source == 0) {
    ::close(ends[0]);
    return Source(options, folder, Token(ends[1]));
  }
  ::close(ends[1]);
  const int failed = Target(options, folder, Token(ends[0]));
  int status = 0;
  ::waitpid(source, &status, 0);
  std::filesystem::remove_all(folder);
  return failed != 0 || status != 0 ? 1 : 0;
}
