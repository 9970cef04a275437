// One source and its targets as processes of one node, a GPU each: the same arena by one broadcast
// and by a pull each. Driven by gpu_broadcast.py, which wants one JSON object a line.

#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <mutex>
#include <optional>

#include "agent/cuda/copy_engine.h"
#include "agent/cuda/device.h"
#include "agent/nccl/nccl_broadcaster.h"
#include "agent/transfer/broadcast_pull.h"
#include "agent/transfer/node_share.h"
#include "bench/gpu_bench.h"

namespace {

using namespace rouse;
using Clock = std::chrono::steady_clock;

struct Options {
  std::uint64_t gib = 16;
  int targets = 1;
  int rounds = 3;
  std::string library = "libnccl.so.2";
};

/// Lines of JSON over a socket; a peer that is gone ends this process too.
class Line {
 public:
  explicit Line(int fd) : fd_(fd) {}
  void Say(const json::Json& value) const {
    const std::string text = json::Dump(value);
    if (::send(fd_, text.data(), text.size(), MSG_NOSIGNAL) < 0) std::exit(1);
  }
  json::Json Hear() const {
    std::array<char, 4096> text;
    const ssize_t got = ::recv(fd_, text.data(), text.size(), 0);
    if (got <= 0) std::exit(1);
    return Must(json::Parse({text.data(), static_cast<std::size_t>(got)}, "line"));
  }

 private:
  int fd_;
};

memory::ArenaOptions Shape(const Options& options, std::shared_ptr<const cuda::Device> device) {
  return {
      .bytes = options.gib << 30, .memory = cuda::DeviceMemory(std::move(device)), .name = "bench"};
}

// So that no round passes by the bytes of the one before.
void Spoil(const cuda::Device& device, memory::Arena& arena) {
  const std::array<std::byte, 8> nothing{};
  for (std::uint64_t at = 64; at < arena.bytes(); at += kChunkBytes) {
    Must(cuda::Upload(device, arena.span().data() + at, nothing));
  }
}

WeightManifest ManifestOf(memory::CopyEngine& engine, const memory::Arena& arena) {
  WeightManifest manifest;
  manifest.arena_bytes = arena.bytes();
  manifest.chunk_digests = Must(memory::DigestChunks(engine, arena));
  return manifest;
}

int Source(const Options& options, const std::string& folder, const Line& line) {
  const auto device = Must(cuda::Device::Open(0));
  const auto arena = Must(memory::Arena::Create(Shape(options, device)));
  Fill(*device, *arena);
  const auto engine = Must(cuda::DeviceCopyEngine(device));
  std::ofstream(folder + "/manifest") << json::Dump(ToJson(ManifestOf(*engine, *arena)));
  const auto broadcaster = Must(nccl::NcclBroadcaster(device, options.library));
  std::mutex mutex;
  std::optional<memory::BroadcastId> id;
  const auto share = Must(transfer::NodeShare::Start(
      folder, "source.sock",
      [&](const transfer::NodeRequest& request) -> Result<transfer::SharedSlabs> {
        transfer::SharedSlabs slabs{.memory = "cuda", .fds = {}};
        for (std::size_t i = request.first; i < request.first + request.count; ++i) {
          ROUSE_ASSIGN_OR_RETURN(auto fd, arena->slab(i).DuplicateFd());
          slabs.fds.push_back(std::move(fd));
        }
        return slabs;
      },
      {},
      // Everybody has a seat here, whether it pays or not: the lease is the rank.
      [&](const transfer::NodeJoin& join) -> Result<transfer::NodeJoinAnswer> {
        const std::scoped_lock lock(mutex);
        if (!id) return transfer::NodeJoinAnswer(transfer::JoinWait{std::chrono::milliseconds(1)});
        return transfer::NodeJoinAnswer(
            memory::BroadcastSeat{*id, options.targets + 1, std::stoi(join.lease)});
      }));
  line.Say({{"gpu", device->name()}});
  while (line.Hear() == "broadcast") {
    const auto started = Clock::now();
    const memory::BroadcastId now = Must(broadcaster->NewId());
    {
      const std::scoped_lock lock(mutex);
      id = now;
    }
    line.Say({{"idSeconds", Since(started)}});
    Must(broadcaster
             ->Send({now, options.targets + 1, 0}, *arena,
                    {.setup_deadline = std::chrono::seconds(30)})
             .status());
    const std::scoped_lock lock(mutex);
    id.reset();
    line.Say("sent");
  }
  return 0;
}

/// Keeps what the broadcast reported.
class Recording final : public memory::Broadcaster {
 public:
  explicit Recording(std::unique_ptr<memory::Broadcaster> inner) : inner_(std::move(inner)) {}
  Result<memory::BroadcastId> NewId() override { return inner_->NewId(); }
  Result<memory::BroadcastReport> Send(const memory::BroadcastSeat& seat,
                                       const memory::Arena& arena,
                                       const memory::BroadcastOptions& options) override {
    return inner_->Send(seat, arena, options);
  }
  Result<memory::BroadcastReport> Receive(const memory::BroadcastSeat& seat, memory::Arena& arena,
                                          const memory::BroadcastOptions& options) override {
    const auto started = Clock::now();
    auto result = inner_->Receive(seat, arena, options);
    if (result.ok()) report = *result;
    seconds = Since(started);
    return result;
  }

  memory::BroadcastReport report;
  double seconds = 0;  ///< All of it, taking the communicator down included.

 private:
  std::unique_ptr<memory::Broadcaster> inner_;
};

int Target(const Options& options, const std::string& folder, const Line& line, int number) {
  const auto device = Must(cuda::Device::Open(number));
  const auto engine = Must(cuda::DeviceCopyEngine(device));
  Recording broadcaster(Must(nccl::NcclBroadcaster(device, options.library)));
  const auto arena = Must(memory::Arena::Create(Shape(options, device)));
  line.Say({{"gpu", device->name()}});
  line.Hear();  // the manifest is there
  std::ifstream file(folder + "/manifest");
  const std::string text((std::istreambuf_iterator<char>(file)), {});
  RemoteRank rank;
  rank.manifest = Must(ManifestFromJson(Must(json::Parse(text, "manifest")), "manifest"));
  for (const std::uint64_t bytes : arena->SlabBytes()) rank.slabs.push_back({.bytes = bytes});
  const transfer::NodeSource from{"bench/source", folder + "/source.sock", std::to_string(number)};
  const transfer::BroadcastPullOptions fetch{
      .self = {nccl::DomainName(), device->uuid()},
      .broadcast = {.setup_deadline = std::chrono::seconds(30)}};
  for (;;) {
    const json::Json command = line.Hear();
    if (command == "spoil") {
      Spoil(*device, *arena);
      line.Say("spoilt");
      continue;
    }
    if (command != "broadcast" && command != "pull") return 0;
    const auto report = Must(transfer::FetchFromNode(
        from, rank, *arena, cuda::DeviceMemory(device), *engine,
        command == "broadcast" ? &broadcaster : nullptr, fetch, {}, nullptr));
    json::Json said = {{"transport", report.transport}, {"seconds", report.seconds}};
    if (command == "broadcast") {
      if (!report.transport.starts_with("broadcast/")) Must(Internal("the broadcast failed"));
      said["setupSeconds"] = broadcaster.report.setup_seconds;
      said["transferSeconds"] = broadcaster.report.transfer_seconds;
      said["closeSeconds"] = broadcaster.seconds - broadcaster.report.setup_seconds -
                             broadcaster.report.transfer_seconds;
    }
    line.Say(said);
  }
}

/// One way, once: until the last target has every byte, verified.
void Round(const Options& options, const std::vector<Line>& lines, const std::string& way,
           int round) {
  for (int i = 1; i <= options.targets; ++i) lines[i].Say("spoil");
  for (int i = 1; i <= options.targets; ++i) lines[i].Hear();
  json::Json said = {{"way", way}, {"round", round}, {"bytes", options.gib << 30}};
  const auto started = Clock::now();
  if (way == "broadcast") {
    lines[0].Say(way);
    said["idSeconds"] = lines[0].Hear()["idSeconds"];
  }
  for (int i = 1; i <= options.targets; ++i) lines[i].Say(way);
  for (int i = 1; i <= options.targets; ++i) said["targets"].push_back(lines[i].Hear());
  said["seconds"] = Since(started);
  if (way == "broadcast") lines[0].Hear();
  std::cout << json::Dump(said) << std::endl;
}

int Lead(const Options& options, const std::vector<Line>& lines) {
  json::Json gpus;
  for (const Line& line : lines) gpus.push_back(line.Hear()["gpu"]);
  std::cout << json::Dump({{"gpus", gpus}}) << std::endl;
  for (int i = 1; i <= options.targets; ++i) lines[i].Say("begin");
  for (int round = 0; round < options.rounds; ++round) {
    for (const char* way : {"broadcast", "pull"}) Round(options, lines, way, round);
  }
  for (const Line& line : lines) line.Say("end");
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app("Brings one GPU's arena to several others, by broadcast and by pulls");
  app.add_option("--gib", options.gib)->capture_default_str();
  app.add_option("--targets", options.targets)->capture_default_str()->check(CLI::Range(1, 63));
  app.add_option("--rounds", options.rounds)->capture_default_str();
  app.add_option("--library", options.library, "path of libnccl.so.2")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  std::string folder = (std::filesystem::temp_directory_path() / "rouse-bench-XXXXXX").string();
  if (::mkdtemp(folder.data()) == nullptr) return 1;
  std::vector<Line> lines;
  std::vector<pid_t> children;
  for (int number = 0; number <= options.targets; ++number) {
    int ends[2];
    if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) return 1;
    const pid_t child = ::fork();  // before anybody has a CUDA context
    if (child == 0) {
      ::close(ends[0]);
      const Line line(ends[1]);
      return number == 0 ? Source(options, folder, line) : Target(options, folder, line, number);
    }
    ::close(ends[1]);
    lines.emplace_back(ends[0]);
    children.push_back(child);
  }
  int failed = Lead(options, lines);
  for (const pid_t child : children) {
    int status = 0;
    ::waitpid(child, &status, 0);
    if (status != 0) failed = 1;
  }
  std::filesystem::remove_all(folder);
  return failed;
}
