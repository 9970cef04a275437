#include <catch2/catch.hpp>

#include "agent/transfer/source.h"

namespace rouse::transfer {
namespace {

PullSource Good() {
  PullSource source;
  source.name = "default/demo-0";
  source.worker_address = std::string(200, 'w');
  source.rank.manifest.arena_bytes = 10u << 20;
  source.rank.manifest.chunk_digests.assign(3, std::string(32, '0'));
  source.rank.slabs = {{.address = 0x7f0000000000, .bytes = 8u << 20, .rkey = "key of slab 0"},
                       {.address = 0x7f0000800000, .bytes = 2u << 20, .rkey = "key of slab 1"}};
  return source;
}

TEST_CASE("a description that can be true is accepted", "[transfer]") {
  REQUIRE(CheckSource(Good()).ok());
}

TEST_CASE("a partial description brings one bit for each chunk", "[transfer]") {
  PullSource source = Good();
  source.rank.availability = RemoteSlab{.address = 0x7f0000c00000, .bytes = 8, .rkey = "bitmap"};
  REQUIRE(CheckSource(source).ok());
  source.rank.availability->bytes = 1u << 30;  // What would be read into our memory.
  REQUIRE_THAT(CheckSource(source).message(), Catch::Contains("availability.bytes"));
}

TEST_CASE("slabs without keys are read within the node, or through copies", "[transfer]") {
  PullSource source = Good();
  REQUIRE_FALSE(InGpuMemory(source.rank));
  for (RemoteSlab& slab : source.rank.slabs) slab = {.bytes = slab.bytes};
  REQUIRE(InGpuMemory(source.rank));
  REQUIRE(CheckSource(source).ok());
  REQUIRE_FALSE(CanBeStaged(source.rank));
  REQUIRE_THAT(CheckKeys(source.rank).message(), Catch::Contains("only agents of its node"));
  source.rank.stage_bytes = source.rank.manifest.chunk_bytes;
  REQUIRE(CheckSource(source).ok());
  REQUIRE(CanBeStaged(source.rank));
  REQUIRE(CheckKeys(source.rank).code() == StatusCode::kFailedPrecondition);
  source.rank.stage_bytes -= 1;
  REQUIRE_THAT(CheckSource(source).message(), Catch::Contains("stageBytes"));
  source.rank.stage_bytes = 0;
  source.rank.slabs[1].bytes = std::uint64_t{5} << 30;
  REQUIRE_THAT(CheckSource(source).message(), Catch::Contains("slabs[1].bytes"));
}

TEST_CASE("an impossible description is refused with source and field", "[transfer]") {
  PullSource source = Good();
  std::string field;
  SECTION("no worker address") {
    source.worker_address.clear();
    field = "workerAddress";
  }
  SECTION("an endless worker address") {
    source.worker_address.assign(1 << 20, 'w');
    field = "workerAddress";
  }
  SECTION("a missing digest") {
    source.rank.manifest.chunk_digests.pop_back();
    field = "digests";
  }
  SECTION("a missing slab") {
    source.rank.slabs.pop_back();
    field = "slabs";
  }
  SECTION("slabs that overflow when added up") {
    source.rank.slabs[1].bytes = ~std::uint64_t{0} - (8u << 20) + 1;
    source.rank.manifest.arena_bytes = 0;
    source.rank.manifest.chunk_digests.clear();
    field = "slabs[1].bytes";
  }
  SECTION("an empty slab") {
    source.rank.slabs[0].bytes = 0;
    field = "slabs[0].bytes";
  }
  SECTION("a slab that wraps around the address space") {
    source.rank.slabs[1].address = ~std::uint64_t{0} - 4096;
    field = "slabs[1].address";
  }
  SECTION("a slab at address zero") {
    source.rank.slabs[0].address = 0;
    field = "slabs[0].address";
  }
  SECTION("no key") {
    source.rank.slabs[1].rkey.clear();
    field = "slabs[1].rkey";
  }
  SECTION("an endless key") {
    source.rank.slabs[1].rkey.assign(1 << 20, 'k');
    field = "slabs[1].rkey";
  }
  const Status status = CheckSource(source);
  REQUIRE(status.code() == StatusCode::kInvalidArgument);
  REQUIRE_THAT(status.message(), Catch::Contains("default/demo-0") && Catch::Contains(field));
}

}  // namespace
}  // namespace rouse::transfer
