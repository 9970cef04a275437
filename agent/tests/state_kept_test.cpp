// What an agent keeps for others: room, use, and what is known of it after a restart.

#include <fcntl.h>
#include <sys/resource.h>

#include <catch2/catch.hpp>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "agent/memory/owned_fd.h"
#include "agent/state/kept_bundles.h"
#include "agent/state/kept_list.h"
#include "agent/tests/state_fixture.h"
#include "agent/tests/temp_folder.h"
#include "common/sha256.h"

using namespace rouse;
using namespace rouse::agent;

namespace fs = std::filesystem;

namespace {

constexpr std::uint64_t kStoreBytes = 2'000;  // Half of it is for copies.
constexpr std::int64_t kLongAgo = 1'000;
constexpr std::int64_t kNow = kLongAgo + 2 * kOutOfUseUs;

BundleKey KeyOf(char name) {
  return {CacheClass::kMatched, std::string(64, name)};
}

struct Shelf {
  Shelf() {
    auto opened = StateStore::Open(Options("uid-1"));
    REQUIRE(opened.ok());
    store = *std::move(opened);
  }
  StateStoreOptions Options(const std::string& owner) const {
    return {.folder = folder.path() + "/store", .max_bytes = kStoreBytes, .owner = owner};
  }
  /// A bundle of so many bytes, in the store.
  KeptBundle Put(char name, std::size_t bytes, std::int64_t used_at_us) const {
    const std::string content(bytes, name);
    Bundle bundle{.of = CacheClass::kMatched,
                  .fingerprint = KeyOf(name).fingerprint,
                  .entries = {FileEntry("triton/kernel", content)}};
    REQUIRE(store->Append(Sha256Hex(content), 0, content).ok());
    REQUIRE(store->Finish(Sha256Hex(content), bytes).ok());
    REQUIRE(store->Put(bundle).ok());
    return {.held = MakeHeld(std::move(bundle)), .copies = 2, .used_at_us = used_at_us};
  }

  TempFolder folder;
  std::unique_ptr<StateStore> store;
};

/// While it lives this process can open only so many files more.
class FewDescriptors {
 public:
  explicit FewDescriptors(rlim_t count) {
    const memory::OwnedFd next(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    REQUIRE(::getrlimit(RLIMIT_NOFILE, &before_) == 0);
    const rlimit few{.rlim_cur = static_cast<rlim_t>(next.get()) + count,
                     .rlim_max = before_.rlim_max};
    REQUIRE(::setrlimit(RLIMIT_NOFILE, &few) == 0);
  }
  ~FewDescriptors() { ::setrlimit(RLIMIT_NOFILE, &before_); }
  FewDescriptors(const FewDescriptors&) = delete;
  FewDescriptors& operator=(const FewDescriptors&) = delete;

 private:
  rlimit before_{};
};

}  // namespace

TEST_CASE(
    "What was not used for long makes room, those used longest ago first; what is in use does "
    "not") {
  const Shelf shelf;
  KeptBundles kept(*shelf.store, shelf.Options("uid-1"));
  kept.Add(shelf.Put('a', 300, kLongAgo + 1));
  kept.Add(shelf.Put('b', 300, kLongAgo));
  kept.Add(shelf.Put('c', 300, kNow - 1));
  const auto room = [&](std::uint64_t bytes, std::int64_t used_at_us) {
    return kept.RoomFor(
        {.key = KeyOf('d'), .bytes = bytes, .entries = 1, .used_at_us = used_at_us});
  };
  using Keys = std::vector<BundleKey>;
  CHECK(room(100, kNow) == Keys());
  CHECK(room(101, kNow) == Keys{KeyOf('b')});
  CHECK(room(700, kNow) == Keys{KeyOf('b'), KeyOf('a')});
  CHECK_FALSE(room(701, kNow));
  CHECK_FALSE(room(1'001, kNow));
  // Of those that are in use none goes for another, whichever was heard of last.
  CHECK_FALSE(room(101, kLongAgo + kOutOfUseUs));
  // One that it has already takes no room twice.
  CHECK(kept.RoomFor({.key = KeyOf('c'), .bytes = 400, .entries = 1, .used_at_us = kNow}) ==
        Keys());
  // Nor does one with more files than an agent shall have in mind.
  CHECK(room(1, kNow) == Keys());
  CHECK_FALSE(kept.RoomFor(
      {.key = KeyOf('d'), .bytes = 1, .entries = kMaxKeptEntries, .used_at_us = kNow}));
}

TEST_CASE("Agents on one folder have half of it for copies together, one bundle counted once") {
  const Shelf shelf;
  KeptBundles one(*shelf.store, shelf.Options("uid-1"));
  KeptBundles other(*shelf.store, shelf.Options("uid-2"));
  const auto room = [&](const KeptBundles& kept, std::uint64_t bytes) {
    return kept.RoomFor({.key = KeyOf('d'), .bytes = bytes, .entries = 1, .used_at_us = kNow})
        .has_value();
  };
  one.Add(shelf.Put('a', 300, kLongAgo));
  REQUIRE(one.Write().ok());
  REQUIRE(other.Write().ok());
  CHECK(room(other, 700));
  CHECK_FALSE(room(other, 701));  // It is not its own, to be given up.
  other.Add(shelf.Put('a', 300, kNow));
  CHECK(room(other, 700));
  REQUIRE(other.Write().ok());
  one.Remove(KeyOf('a'));
  REQUIRE(one.Write().ok());
  CHECK(room(one, 700));
  CHECK_FALSE(room(one, 701));
  other.Remove(KeyOf('a'));
  REQUIRE(other.Write().ok());
  REQUIRE(one.Write().ok());
  CHECK(room(one, 1'000));
}

TEST_CASE("Of what is said of a bundle's use the latest counts, and it is known after a restart") {
  const Shelf shelf;
  {
    KeptBundles kept(*shelf.store, shelf.Options("uid-1"));
    CHECK_FALSE(kept.Hear(KeyOf('a'), 3, kNow));
    kept.Add(shelf.Put('a', 10, kLongAgo));
    kept.Add(shelf.Put('b', 20, kLongAgo));
    CHECK(kept.Hear(KeyOf('a'), 3, kLongAgo - 1)->copies == 2);
    CHECK(kept.Hear(KeyOf('a'), 3, kNow)->copies == 3);
    CHECK(kept.Hear(KeyOf('a'), 4, kNow - 1)->used_at_us == kNow);
    CHECK(kept.size().bundles == 2);
    CHECK(kept.size().bytes == 30);
    REQUIRE(kept.Write().ok());
  }
  shelf.store->Remove(CacheClass::kMatched, KeyOf('b').fingerprint);
  const KeptBundles again(*shelf.store, shelf.Options("uid-1"));
  REQUIRE(again.All().size() == 1);
  CHECK(again.All()[0].copies == 3);
  CHECK(again.All()[0].used_at_us == kNow);
  CHECK(again.Find(KeyOf('a'))->files.size() == 1);
  CHECK(again.Find(KeyOf('b')) == nullptr);
  CHECK(KeptBundles(*shelf.store, shelf.Options("uid-2")).All().empty());
}

TEST_CASE("What an agent of the folder keeps for others is not removed, while that agent lives") {
  const Shelf shelf;
  const std::string folder = shelf.folder.path() + "/store";
  KeptBundles kept(*shelf.store, shelf.Options("uid-2"));
  kept.Add(shelf.Put('a', 10, kNow));
  REQUIRE(kept.Write().ok());
  const auto full = StateStore::Open({.folder = folder, .max_bytes = 1, .owner = "uid-1"});
  REQUIRE(full.ok());
  const auto is_there = [&] {
    return (*full)->Find(CacheClass::kMatched, KeyOf('a').fingerprint).ok();
  };
  (*full)->Trim({});
  CHECK(is_there());
  // A list that nobody can read protects nothing, and one that was not written for long is gone.
  shelf.folder.Write("store/kept/uid-3.json", "{");
  CHECK(ReadKept(folder, "uid-3").empty());
  (*full)->Trim({});
  CHECK(is_there());
  fs::last_write_time(folder + "/kept/uid-2.json",
                      fs::file_time_type::clock::now() - std::chrono::seconds(kKeptGoneS + 60));
  (*full)->Trim({});
  CHECK_FALSE(is_there());
  CHECK_FALSE(fs::exists(folder + "/kept/uid-2.json"));
}

TEST_CASE("Nothing is removed from a store that cannot be read whole at the moment") {
  const Shelf shelf;
  const std::string folder = shelf.folder.path() + "/store";
  KeptBundles kept(*shelf.store, shelf.Options("uid-2"));
  kept.Add(shelf.Put('a', 10, kNow));
  REQUIRE(kept.Write().ok());
  shelf.Put('b', 10, kNow);
  const auto full = StateStore::Open({.folder = folder, .max_bytes = 10, .owner = "uid-1"});
  REQUIRE(full.ok());
  const auto is_there = [&](char name) {
    return (*full)->Find(CacheClass::kMatched, KeyOf(name).fingerprint).ok();
  };
  for (rlim_t descriptors = 0; descriptors < 3; ++descriptors) {
    CAPTURE(descriptors);
    {
      const FewDescriptors few(descriptors);
      (*full)->Trim({});
    }
    // None: not even the lock; one: no folder; two: a folder, but no list in it.
    CHECK(is_there('a'));
    CHECK(is_there('b'));
  }
  (*full)->Trim({});
  CHECK(is_there('a'));
  CHECK_FALSE(is_there('b'));
}
