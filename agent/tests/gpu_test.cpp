// What needs a GPU. Not part of `make test`, which runs where there is none: `make test-gpu`.

#include <unistd.h>

#include <catch2/catch.hpp>
#include <cstring>
#include <thread>

#include "agent/cuda/copy_engine.h"
#include "agent/cuda/device.h"
#include "agent/cuda/gpus.h"
#include "agent/nccl/nccl_broadcaster.h"
#include "agent/tests/paths.h"
#include "agent/tests/transfer_fixture.h"
#include "agent/transfer/node_pull.h"
#include "agent/transfer/node_share.h"
#include "agent/transfer/publisher.h"
#include "agent/transfer/staged_pull.h"

namespace rouse::transfer {
namespace {

constexpr std::uint64_t kMiB = 1u << 20;

std::shared_ptr<const cuda::Device> Gpu(int ordinal = 0) {
  return Must(cuda::Device::Open(ordinal));
}

std::vector<std::byte> Bytes(std::uint64_t count) {
  std::vector<std::byte> bytes(count);
  std::uint64_t state = count;
  for (std::size_t i = 0; i < count; i += 8) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    std::memcpy(bytes.data() + i, &state, std::min<std::size_t>(8, count - i));
  }
  return bytes;
}

std::shared_ptr<memory::Arena> Filled(const std::shared_ptr<const cuda::Device>& device,
                                      std::span<const std::byte> bytes, std::uint64_t slab_bytes) {
  std::shared_ptr<memory::Arena> arena =
      Must(memory::Arena::Create({.bytes = bytes.size(),
                                  .memory = cuda::DeviceMemory(device),
                                  .slab_bytes = slab_bytes,
                                  .name = "test"}));
  Must(cuda::Upload(*device, arena->span().data(), bytes));
  return arena;
}

std::vector<std::string> CpuDigests(std::span<const std::byte> content) {
  std::vector<std::string> digests;
  for (std::uint64_t i = 0; i < ChunkCount(content.size(), kChunkBytes); ++i) {
    const auto range = memory::ChunkRangeOf(i, content.size(), kChunkBytes);
    digests.push_back(memory::DigestChunk(content.subspan(range.offset, range.bytes)));
  }
  return digests;
}

TEST_CASE("digests taken on the GPU are those of the CPU", "[gpu]") {
  const auto device = Gpu();
  const auto engine = Must(cuda::DeviceCopyEngine(device));
  const std::uint64_t bytes =
      GENERATE(1u, 65535u, 65536u, 65537u, 4 * kMiB, 21 * kMiB + 12345, 700 * kMiB + 65536 * 3);
  const auto content = Bytes(bytes);
  const auto arena = Filled(device, content, 256 * kMiB);
  REQUIRE(Must(memory::DigestChunks(*engine, *arena)) == CpuDigests(content));
}

TEST_CASE("slabs travel as descriptors, are mapped by another arena and copied from", "[gpu]") {
  const auto device = Gpu();
  const auto content = Bytes(37 * kMiB + 77);
  const auto source = Filled(device, content, 16 * kMiB);
  std::vector<memory::OwnedFd> fds;
  for (std::size_t i = 0; i < source->slab_count(); ++i) {
    fds.push_back(Must(source->slab(i).DuplicateFd()));
  }
  const auto imported = Must(memory::Arena::Import(
      {.bytes = content.size(), .memory = cuda::DeviceMemory(device), .slab_bytes = 16 * kMiB},
      std::move(fds)));
  const auto target = Must(memory::Arena::Create(
      {.bytes = content.size(), .memory = cuda::DeviceMemory(device), .slab_bytes = 32 * kMiB}));
  const auto engine = Must(cuda::DeviceCopyEngine(device));
  std::uint64_t arrived = 0;
  Must(engine->Copy(*imported, *target, {}, [&](const memory::Piece& piece) -> Status {
    arrived += piece.bytes;
    return {};
  }));
  REQUIRE(arrived == content.size());
  std::vector<std::byte> read(content.size());
  Must(cuda::Download(*device, read, target->span().data()));
  REQUIRE(read == content);
}

TEST_CASE("a node-local pull brings every byte, and finds one that was flipped", "[gpu]") {
  const auto device = Gpu();
  const auto memory = cuda::DeviceMemory(device);
  auto content = Bytes(300 * kMiB + 5);
  const auto source = Filled(device, content, 64 * kMiB);
  RemoteRank rank;
  rank.manifest.arena_bytes = content.size();
  rank.manifest.chunk_digests = CpuDigests(content);
  for (const std::uint64_t bytes : source->SlabBytes()) rank.slabs.push_back({.bytes = bytes});
  char folder[] = "/tmp/rouse-gpu-XXXXXX";
  REQUIRE(::mkdtemp(folder) != nullptr);
  const auto share = Must(NodeShare::Start(
      folder, "source.sock", [&](const NodeRequest& request) -> Result<SharedSlabs> {
        SharedSlabs slabs{.memory = "cuda", .fds = {}};
        for (std::size_t i = request.first; i < request.first + request.count; ++i) {
          ROUSE_ASSIGN_OR_RETURN(auto fd, source->slab(i).DuplicateFd());
          slabs.fds.push_back(std::move(fd));
        }
        return slabs;
      }));
  const NodeSource from{"test/source", std::string(folder) + "/source.sock", "lease"};
  const auto imported = Must(ImportFromNode(from, rank, memory, std::chrono::seconds(5)));
  const auto target = Must(memory::Arena::Create({.bytes = content.size(), .memory = memory}));
  const auto engine = Must(cuda::DeviceCopyEngine(device));
  const auto report =
      CopyFromNode(from, rank.manifest, *imported, *target, *engine, {}, {}, nullptr);
  REQUIRE(report.status() == Status());
  REQUIRE(report->transport == "node/cuda:0");
  REQUIRE(report->counters.bytes_verified == content.size());
  REQUIRE(report->counters.chunks_verified == 76);
  std::vector<std::byte> read(content.size());
  Must(cuda::Download(*device, read, target->span().data()));
  REQUIRE(read == content);

  const std::byte flipped = content[41 * kChunkBytes + 99] ^ std::byte{16};
  Must(cuda::Upload(*device, source->span().data() + 41 * kChunkBytes + 99, {&flipped, 1}));
  const auto damaged =
      CopyFromNode(from, rank.manifest, *imported, *target, *engine, {}, {}, nullptr);
  REQUIRE(damaged.status().code() == StatusCode::kDataLoss);
  REQUIRE_THAT(damaged.status().message(), Catch::Contains("chunk 41 of rank 0"));
  ::rmdir(folder);
}

TEST_CASE("GPU memory is read from another node through pinned host memory", "[gpu]") {
  const auto device = Gpu();
  const auto content = Bytes(300 * kMiB + 4321);
  const auto source = Filled(device, content, 64 * kMiB);
  const auto publisher = Must(Publisher::Create({.leases = {}, .program = kTransferPeerProgram}));
  WeightManifest manifest;
  manifest.identity = {{"model", "test"}};
  manifest.arena_bytes = content.size();
  manifest.allocations = {{.offset = 0, .bytes = content.size()}};
  manifest.chunk_digests = CpuDigests(content);
  Must(publisher->Publish(source, manifest));
  const OpenResponse opened = Must(publisher->Open("test/target"));
  const auto target = Must(memory::Arena::Create({.bytes = content.size(),
                                                  .memory = cuda::DeviceMemory(device),
                                                  .slab_bytes = 128 * kMiB,
                                                  .name = "target"}));
  std::vector<std::byte> host(4 * kMiB);
  REQUIRE(Must(target->memory().PinHost(host)) != nullptr);
  const PullReport report = Must(
      PullStaged({.name = "test/source",
                  .worker_address = opened.worker_address,
                  .lease = opened.lease,
                  .rank = opened.ranks.at(0)},
                 Must(ucx::Context::Create()), *target,
                 [&](const StageRequest& request) { return publisher->Stage(request); }, {}, {}));
  CHECK(report.counters.bytes_verified == content.size());
  std::vector<std::byte> read(content.size());
  Must(cuda::Download(*device, read, target->span().data()));
  CHECK(read == content);
}

TEST_CASE("a GPU is found by its UUID, and is known by it", "[gpu]") {
  const auto gpus = cuda::Gpus();
  REQUIRE(gpus->Check() == Status());
  const auto device = Gpu();
  const auto memory = Must(gpus->MemoryOf(device->uuid()));
  REQUIRE(memory->gpu() == device->uuid());
  REQUIRE(Must(gpus->MemoryOf(device->uuid())) == memory);
  REQUIRE(gpus->MemoryOf("GPU-of-somebody-else").status().code() == StatusCode::kNotFound);
  const auto content = Bytes(9 * kMiB);
  const auto arena = Must(memory::Arena::Create({.bytes = content.size(), .memory = memory}));
  Must(cuda::Upload(*device, arena->span().data(), content));
  const auto engine = Must(memory->NewCopyEngine(1));
  REQUIRE(Must(memory::DigestChunks(*engine, *arena)) == CpuDigests(content));
}

TEST_CASE("memory is given back when an arena goes", "[gpu]") {
  const auto device = Gpu();
  const std::uint64_t before = Must(device->FreeBytes());
  auto arena =
      Must(memory::Arena::Create({.bytes = 2048 * kMiB, .memory = cuda::DeviceMemory(device)}));
  REQUIRE(Must(device->FreeBytes()) + 2048 * kMiB <= before);
  arena.reset();
  REQUIRE(Must(device->FreeBytes()) >= before);
}

TEST_CASE("more memory than there is, is an error that names the GPU", "[gpu]") {
  const auto device = Gpu();
  const auto arena = memory::Arena::Create(
      {.bytes = std::uint64_t{4} << 40, .memory = cuda::DeviceMemory(device), .name = "rank0"});
  REQUIRE(arena.status().code() == StatusCode::kResourceExhausted);
  REQUIRE_THAT(arena.status().message(),
               Catch::Contains("rank0") && Catch::Contains(device->name()));
}

TEST_CASE("a descriptor that is no GPU memory is refused", "[gpu]") {
  const auto device = Gpu();
  int ends[2];
  REQUIRE(::pipe(ends) == 0);
  ::close(ends[1]);
  std::vector<memory::OwnedFd> fds;
  fds.emplace_back(ends[0]);
  const auto arena = memory::Arena::Import(
      {.bytes = 2 * kMiB, .memory = cuda::DeviceMemory(device), .slab_bytes = 2 * kMiB},
      std::move(fds));
  REQUIRE_FALSE(arena.ok());
  REQUIRE_THAT(arena.status().message(), Catch::Contains("slab 0"));
}

TEST_CASE("a copy that is cancelled ends, and one with odd chunks is refused", "[gpu]") {
  const auto device = Gpu();
  const auto memory = cuda::DeviceMemory(device);
  const auto a = Must(memory::Arena::Create({.bytes = 4096 * kMiB, .memory = memory}));
  const auto b = Must(memory::Arena::Create({.bytes = 4096 * kMiB, .memory = memory}));
  const auto engine = Must(cuda::DeviceCopyEngine(device));
  std::stop_source stop;
  const Status cancelled =
      engine->Copy(*a, *b, {.stop = stop.get_token()}, [&](const memory::Piece&) -> Status {
        stop.request_stop();
        return {};
      });
  REQUIRE(cancelled.code() == StatusCode::kCancelled);
  REQUIRE(engine->Copy(*a, *b, {.chunk_bytes = 100'000}, nullptr).code() ==
          StatusCode::kInvalidArgument);
}

TEST_CASE("weights come over NVLink from another GPU of the node", "[gpu][two]") {
  if (Must(cuda::DeviceCount()) < 2) {
    WARN("one GPU only: not run");
    return;
  }
  const auto far = Gpu(1);
  const auto near = Gpu(0);
  REQUIRE(near->Reaches(*far));
  const auto content = Bytes(300 * kMiB + 9);
  const auto source = Filled(far, content, 64 * kMiB);
  std::vector<memory::OwnedFd> fds;
  for (std::size_t i = 0; i < source->slab_count(); ++i) {
    fds.push_back(Must(source->slab(i).DuplicateFd()));
  }
  const auto imported = Must(memory::Arena::Import(
      {.bytes = content.size(), .memory = cuda::DeviceMemory(near), .slab_bytes = 64 * kMiB},
      std::move(fds)));
  const auto target =
      Must(memory::Arena::Create({.bytes = content.size(), .memory = cuda::DeviceMemory(near)}));
  const auto engine = Must(cuda::DeviceCopyEngine(near));
  Must(engine->Copy(*imported, *target, {}, [](const memory::Piece&) { return Status(); }));
  std::vector<std::byte> read(content.size());
  Must(cuda::Download(*near, read, target->span().data()));
  REQUIRE(read == content);
}

// Null, with a word, where NCCL is not to be had.
std::unique_ptr<memory::Broadcaster> Nccl(const std::shared_ptr<const cuda::Device>& device) {
  auto broadcaster = nccl::NcclBroadcaster(device);
  if (broadcaster.ok()) return *std::move(broadcaster);
  WARN(broadcaster.status().ToString() << ": not run");
  return nullptr;
}

TEST_CASE("a broadcast brings every byte to another GPU", "[gpu][nccl][two]") {
  if (Must(cuda::DeviceCount()) < 2) {
    WARN("one GPU only: not run");
    return;
  }
  const auto root = Gpu(0);
  const auto other = Gpu(1);
  const auto sender = Nccl(root);
  const auto receiver = Nccl(other);
  if (sender == nullptr) return;
  // More than one piece, and slabs that differ.
  const auto content = Bytes(1100 * kMiB + 12345);
  const auto source = Filled(root, content, 64 * kMiB);
  const auto target = Must(memory::Arena::Create(
      {.bytes = content.size(), .memory = cuda::DeviceMemory(other), .slab_bytes = 256 * kMiB}));
  const auto id = Must(sender->NewId());
  Status sent;
  {
    const std::jthread thread([&] { sent = sender->Send({id, 2, 0}, *source, {}).status(); });
    const auto received = receiver->Receive({id, 2, 1}, *target, {});
    REQUIRE(received.status() == Status());
    REQUIRE(received->setup_seconds > 0);
  }
  REQUIRE(sent == Status());
  std::vector<std::byte> read(content.size());
  Must(cuda::Download(*other, read, target->span().data()));
  REQUIRE(read == content);
}

TEST_CASE("a broadcast that a rank does not come to ends at its deadline", "[gpu][nccl]") {
  const auto device = Gpu();
  const auto sender = Nccl(device);
  if (sender == nullptr) return;
  const auto source = Filled(device, Bytes(4 * kMiB), 4 * kMiB);
  const auto started = std::chrono::steady_clock::now();
  const auto sent = sender->Send({Must(sender->NewId()), 2, 0}, *source,
                                 {.setup_deadline = std::chrono::milliseconds(1500)});
  REQUIRE(sent.status().code() == StatusCode::kDeadlineExceeded);
  REQUIRE(std::chrono::steady_clock::now() - started < std::chrono::seconds(8));
  // And the GPU is as usable as before.
  const auto engine = Must(cuda::DeviceCopyEngine(device));
  REQUIRE(Must(memory::DigestChunks(*engine, *source)).size() == 1);
}

TEST_CASE("two ranks on one GPU are refused, and neither hangs", "[gpu][nccl]") {
  const auto device = Gpu();
  const auto sender = Nccl(device);
  const auto receiver = Nccl(device);
  if (sender == nullptr) return;
  const auto source = Filled(device, Bytes(4 * kMiB), 4 * kMiB);
  const auto target =
      Must(memory::Arena::Create({.bytes = 4 * kMiB, .memory = cuda::DeviceMemory(device)}));
  const auto id = Must(sender->NewId());
  Status sent;
  Status received;
  {
    const std::jthread thread([&] { sent = sender->Send({id, 2, 0}, *source, {}).status(); });
    received = receiver->Receive({id, 2, 1}, *target, {}).status();
  }
  REQUIRE_FALSE(sent.ok());
  REQUIRE_FALSE(received.ok());
}

TEST_CASE("a rank that waits for bytes that never come ends too", "[gpu][nccl][two]") {
  if (Must(cuda::DeviceCount()) < 2) {
    WARN("one GPU only: not run");
    return;
  }
  const auto root = Gpu(0);
  const auto other = Gpu(1);
  const auto sender = Nccl(root);
  const auto receiver = Nccl(other);
  if (sender == nullptr) return;
  const auto source = Filled(root, Bytes(16 * kMiB), 16 * kMiB);
  // Longer than what is sent, by a piece: what ranks must not do, and what a rank that dies does.
  const auto target = Must(memory::Arena::Create(
      {.bytes = 2 * nccl::kBroadcastPieceBytes, .memory = cuda::DeviceMemory(other)}));
  const auto id = Must(sender->NewId());
  const memory::BroadcastOptions options{.progress_deadline = std::chrono::milliseconds(1500)};
  const auto started = std::chrono::steady_clock::now();
  Status received;
  {
    const std::jthread thread([&] { (void)sender->Send({id, 2, 0}, *source, options); });
    received = receiver->Receive({id, 2, 1}, *target, options).status();
  }
  REQUIRE_FALSE(received.ok());
  REQUIRE(std::chrono::steady_clock::now() - started < std::chrono::seconds(20));
  const auto engine = Must(cuda::DeviceCopyEngine(other));
  REQUIRE_FALSE(Must(memory::DigestChunks(*engine, *target)).empty());
}

}  // namespace
}  // namespace rouse::transfer
