// The processes that hold weights open for peers.

#include <signal.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <thread>

#include "agent/tests/paths.h"
#include "agent/tests/transfer_fixture.h"
#include "agent/transfer/publisher.h"
#include "agent/transfer/pull.h"
#include "agent/transfer/slab_mappings.h"

namespace rouse::transfer {
namespace {

std::shared_ptr<memory::Arena> Named(const std::string& name) {
  return Must(memory::Arena::Create({.bytes = 3 * kMiB, .slab_bytes = kMiB, .name = name}));
}

/// One mapping of a file called `name` in another process.
struct Mapping {
  pid_t pid = 0;
  std::string access;  // "rw-s"
};

std::vector<Mapping> MappingsOf(const std::string& name) {
  std::vector<Mapping> out;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    const pid_t pid = std::atoi(entry.path().filename().c_str());
    if (pid <= 0 || pid == ::getpid()) continue;
    std::ifstream maps(entry.path() / "maps");
    for (std::string line; std::getline(maps, line);) {
      if (line.find("memfd:" + name) == line.npos) continue;
      const std::size_t at = line.find(' ') + 1;
      out.push_back({.pid = pid, .access = line.substr(at, 4)});
    }
  }
  return out;
}

TEST_CASE("a slab that is sealed later stays writable where it was mapped before", "[transfer]") {
  const auto arena = Named("seal");
  SlabMappings mappings;
  const auto before = Must(mappings.Map(arena->slab(0).fd(), kMiB));
  Must(arena->Seal());
  const auto again = Must(mappings.Map(arena->slab(0).fd(), kMiB));
  REQUIRE(again.data() == before.data());
  again[7] = std::byte{0x42};
  REQUIRE(arena->span()[7] == std::byte{0x42});
  // One that comes too late can be read.
  REQUIRE(Must(mappings.Map(arena->slab(1).fd(), kMiB))[0] == std::byte{0});
  REQUIRE(mappings.Map(arena->slab(0).fd(), 2 * kMiB).status().code() ==
          StatusCode::kInvalidArgument);
}

TEST_CASE("what was held before it was sealed is writable in every server, the next one too",
          "[transfer]") {
  const ScopedVariable variable("UCX_TLS", "tcp");
  const std::string name = "held-" + std::to_string(::getpid());
  const auto publisher = Must(Publisher::Create({.leases = {}, .program = kTransferPeerProgram}));
  const auto arena = Named(name);
  Must(publisher->Hold(arena));
  Must(arena->Seal());
  Must(publisher->Publish(arena, ManifestOf(*arena, 0, kMiB)));
  const auto check = [&] {
    const auto found = MappingsOf(name);
    REQUIRE(found.size() == 6);  // keeper and server
    for (const Mapping& mapping : found) REQUIRE(mapping.access == "rw-s");
    pid_t newest = 0;
    for (const Mapping& mapping : found) newest = std::max(newest, mapping.pid);
    return newest;
  };
  const pid_t server = check();
  ::kill(server, SIGKILL);
  while (MappingsOf(name).size() > 3) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  const auto target = EmptyArena(Must(ucx::Context::Create()), 3 * kMiB, kMiB);
  const auto answer = Must(publisher->Open("test/target"));
  REQUIRE(check() != server);
  Must(Pull(SourceOf(answer), *target, {}, {}, nullptr).status());
  REQUIRE(SameBytes(target->arena(), *arena));
}

TEST_CASE("what is held is given back when its arena is gone", "[transfer]") {
  const ScopedVariable variable("UCX_TLS", "tcp");
  const std::string name = "gone-" + std::to_string(::getpid());
  const auto publisher = Must(Publisher::Create({.leases = {}, .program = kTransferPeerProgram}));
  auto arena = Named(name);
  Must(publisher->Hold(arena));
  REQUIRE(MappingsOf(name).size() == 6);
  SECTION("never published") {}
  SECTION("published and withdrawn") {
    Must(publisher->Publish(arena, ManifestOf(*arena, 0, kMiB)));
    const auto lease = Must(publisher->Open("test/target")).lease;
    publisher->Withdraw();
    arena.reset();
    publisher->Expire();
    REQUIRE(MappingsOf(name).size() == 3);  // the server's, for the lease
    Must(publisher->Close(lease));
  }
  arena.reset();
  publisher->Expire();
  REQUIRE(MappingsOf(name).empty());
}

}  // namespace
}  // namespace rouse::transfer
