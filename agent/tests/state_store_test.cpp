// The store of compile caches, and caches put into it and out of it.

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>

#include "agent/state/bundle_fetch.h"
#include "agent/state/cache_tree.h"
#include "agent/state/fingerprint.h"
#include "agent/state/state_store.h"
#include "agent/tests/state_fixture.h"
#include "agent/tests/temp_folder.h"
#include "common/sha256.h"

using namespace rouse;
using namespace rouse::agent;

namespace fs = std::filesystem;

namespace {

constexpr CacheScope kMatched{.of = CacheClass::kMatched};
constexpr CacheScope kReusable{.of = CacheClass::kReusable};

/// A store, a folder with caches, and something beside both that must stay as it is.
struct Fixture {
  explicit Fixture(std::uint64_t max_bytes = 1u << 30) {
    folder.Write("beside/file", "untouched");
    fs::create_directories(state());
    fs::create_directories(target());
    store = Open(max_bytes);
  }
  std::unique_ptr<StateStore> Open(std::uint64_t max_bytes = 1u << 30,
                                   const std::string& owner = "uid-1") const {
    auto opened = StateStore::Open(
        {.folder = folder.path() + "/store", .max_bytes = max_bytes, .owner = owner});
    REQUIRE(opened.ok());
    return *std::move(opened);
  }
  std::string state() const { return folder.path() + "/state"; }
  std::string target() const { return folder.path() + "/target"; }

  Bundle Publish(const CacheScope& scope = kMatched) const {
    const auto snapshot = LookAtCaches(state(), scope);
    REQUIRE(snapshot.ok());
    auto bundle = PublishCaches(*store, state(), scope, kFingerprint, *snapshot, {});
    INFO(bundle.status().ToString());
    REQUIRE(bundle.ok());
    return *bundle;
  }
  void CheckBeside() const {
    CHECK(TreeOf(folder.path() + "/beside") ==
          std::map<std::string, std::string>{{"file", "untouched"}});
  }
  void PutContent(const std::string& content) const {
    const std::string digest = Sha256Hex(content);
    if (!content.empty()) REQUIRE(store->Append(digest, 0, content).ok());
    REQUIRE(store->Finish(digest, content.size()).ok());
  }

  TempFolder folder;
  std::unique_ptr<StateStore> store;
};

}  // namespace

TEST_CASE("Caches are in another pod as they were, times, modes and links too") {
  Fixture fixture;
  WriteCaches(fixture.state());
  const std::string cubin = "/triton/XYZ/kernel.cubin";
  REQUIRE(::chmod((fixture.state() + cubin).c_str(), 0750) == 0);
  const timespec times[2] = {{1'600'000'000, 5}, {1'600'000'000, 987'654'321}};
  REQUIRE(::utimensat(AT_FDCWD, (fixture.state() + cubin).c_str(), times, 0) == 0);

  const Bundle bundle = fixture.Publish();
  const auto hold = fixture.store->HoldAll();
  const auto found = fixture.store->Find(CacheClass::kMatched, kFingerprint);
  REQUIRE(found.ok());
  CHECK(*found == bundle);
  const auto installed = InstallCaches(*fixture.store, *found, fixture.target());
  INFO(installed.status().ToString());
  REQUIRE(installed.ok());
  CHECK(installed->kept.empty());

  const std::string backbone = "vllm/torch_compile_cache/0123456789/rank_0_0/backbone/";
  CHECK(TreeOf(fixture.target()) ==
        std::map<std::string, std::string>{{backbone + "artifact", "compiled"},
                                           {backbone + "vllm_compile_cache.py", "{}"},
                                           {"inductor/ab/cab.py", "def call(): pass"},
                                           {"inductor/ab/link.py", "-> cab.py"},
                                           {"triton/XYZ/kernel.cubin", std::string(100'000, 'k')},
                                           {"vllm/startup_plan/startup_plan_0.json", "{}"}});
  struct stat info {};
  REQUIRE(::lstat((fixture.target() + cubin).c_str(), &info) == 0);
  CHECK((info.st_mode & 07777) == 0750);
  CHECK(info.st_mtim.tv_sec == 1'600'000'000);
  CHECK(info.st_mtim.tv_nsec == 987'654'321);
  // And looks, to its own agent, like what was installed.
  auto again = LookAtCaches(fixture.target(), kMatched);
  REQUIRE(again.ok());
  CacheSnapshot expected = bundle.entries;
  for (BundleEntry& entry : expected) entry.sha256.clear();
  CHECK(*again == expected);
  fixture.CheckBeside();
}

TEST_CASE("The classes do not mix, and a plan of memory without graphs stays behind") {
  Fixture fixture;
  WriteCaches(fixture.state());
  const auto reusable = LookAtCaches(fixture.state(), kReusable);
  REQUIRE(reusable.ok());
  REQUIRE(reusable->size() == 2);
  CHECK((*reusable)[0].path == "vllm/deep_gemm/cache/kernel.x/kernel.cubin");
  CHECK((*reusable)[1].path == "vllm/modelinfos/qwen3.json");
  const auto lazy =
      LookAtCaches(fixture.state(), {.of = CacheClass::kMatched, .startup_plan = false});
  REQUIRE(lazy.ok());
  for (const BundleEntry& entry : *lazy) {
    CHECK(entry.path.find("startup_plan") == std::string::npos);
    // It has the environment in plain text.
    CHECK(entry.path.find("cache_key_factors") == std::string::npos);
  }
}

TEST_CASE("A folder that is there stays as it is") {
  Fixture fixture;
  WriteCaches(fixture.state());
  const Bundle bundle = fixture.Publish();
  const auto hold = fixture.store->HoldAll();
  fs::create_directories(fixture.target() + "/inductor/zz");
  std::ofstream(fixture.target() + "/inductor/zz/own.py") << "own";
  fs::create_directories(fixture.target() + "/triton");  // Empty: no cache.
  const auto installed = InstallCaches(*fixture.store, bundle, fixture.target());
  REQUIRE(installed.ok());
  CHECK(installed->kept == std::vector<std::string>{"inductor"});
  const auto tree = TreeOf(fixture.target());
  CHECK(tree.at("inductor/zz/own.py") == "own");
  CHECK_FALSE(tree.contains("inductor/ab/cab.py"));
  CHECK(tree.contains("triton/XYZ/kernel.cubin"));
}

TEST_CASE("Nothing of a bundle whose files are wrong appears, and the wrong file goes") {
  Fixture fixture;
  WriteCaches(fixture.state());
  const Bundle bundle = fixture.Publish();
  const std::string digest = Sha256Hex("compiled");
  const std::string blob =
      fixture.folder.path() + "/store/blobs/" + digest.substr(0, 2) + "/" + digest;
  REQUIRE(::chmod(blob.c_str(), 0644) == 0);
  std::ofstream(blob) << "poisoned";  // As long as it was.
  const auto hold = fixture.store->HoldAll();
  const auto installed = InstallCaches(*fixture.store, bundle, fixture.target());
  CHECK(installed.status().code() == StatusCode::kDataLoss);
  CHECK(TreeOf(fixture.target()).empty());
  CHECK_FALSE(fs::exists(blob));
  // The bundle is of no use now, and goes too.
  CHECK(fixture.store->Find(CacheClass::kMatched, kFingerprint).status().code() ==
        StatusCode::kNotFound);
  CHECK_FALSE(
      fs::exists(fixture.folder.path() + "/store/bundles/Matched-" + kFingerprint + ".json"));
}

TEST_CASE("Hostile bundles are not installed either, whoever has let them in") {
  Fixture fixture;
  fixture.PutContent("compiled");
  fixture.PutContent("{}");
  const Bundle good = GoodBundle();
  const auto hold = fixture.store->HoldAll();
  std::vector<Bundle> hostile;
  for (const char* path : {"../beside/file", "vllm/torch_compile_cache/../../../beside/x", "/tmp/x",
                           "plugin/x", "vllm/torch_compile_cache"}) {
    hostile.push_back(good);
    hostile.back().entries[0].path = path;
  }
  for (const char* target : {"/etc/passwd", "../../../../../../beside", "nowhere"}) {
    hostile.push_back(good);
    hostile.back().entries[2].target = target;
  }
  for (const Bundle& bundle : hostile) {
    CHECK_FALSE(InstallCaches(*fixture.store, bundle, fixture.target()).ok());
  }
  CHECK(TreeOf(fixture.target()).empty());
  CHECK(InstallCaches(*fixture.store, good, fixture.target()).ok());
  fixture.CheckBeside();
}

TEST_CASE("A state folder whose parts are links leads nowhere else") {
  Fixture fixture;
  WriteCaches(fixture.state());
  const Bundle bundle = fixture.Publish();
  const auto hold = fixture.store->HoldAll();
  fs::create_directory_symlink(fixture.folder.path() + "/beside", fixture.target() + "/vllm");
  CHECK_FALSE(InstallCaches(*fixture.store, bundle, fixture.target()).ok());
  fixture.CheckBeside();
  // Nor are files outside published.
  fs::remove_all(fixture.state() + "/inductor");
  fs::create_directory_symlink(fixture.folder.path() + "/beside", fixture.state() + "/inductor");
  for (const BundleEntry& entry : fixture.Publish().entries) {
    CHECK_FALSE(entry.path.starts_with("inductor"));
  }
}

TEST_CASE("Caches that the engine writes to meanwhile are not published") {
  Fixture fixture;
  WriteCaches(fixture.state());
  const auto snapshot = LookAtCaches(fixture.state(), kMatched);
  REQUIRE(snapshot.ok());
  std::ofstream(fixture.state() + "/inductor/ab/cab.py", std::ios::app) << "more";
  const auto bundle =
      PublishCaches(*fixture.store, fixture.state(), kMatched, kFingerprint, *snapshot, {});
  CHECK(bundle.status().code() == StatusCode::kUnavailable);
  CHECK(fixture.store->Find(CacheClass::kMatched, kFingerprint).status().code() ==
        StatusCode::kNotFound);
}

TEST_CASE("What has not changed since it was published is not read again") {
  Fixture fixture;
  WriteCaches(fixture.state());
  Bundle before = fixture.Publish();
  // As long as the file, and only the bundle before says that the file is that.
  fixture.PutContent("believed");
  for (BundleEntry& entry : before.entries) {
    if (entry.path.ends_with("artifact")) entry.sha256 = Sha256Hex("believed");
  }
  std::ofstream(fixture.state() + "/inductor/new.py") << "new";
  const auto grown = LookAtCaches(fixture.state(), kMatched);
  const auto again =
      PublishCaches(*fixture.store, fixture.state(), kMatched, kFingerprint, *grown, before);
  REQUIRE(again.ok());
  CHECK(again->entries.size() == before.entries.size() + 1);
  for (const BundleEntry& entry : again->entries) {
    if (entry.path.ends_with("artifact")) CHECK(entry.sha256 == Sha256Hex("believed"));
    if (entry.path.ends_with("new.py")) CHECK(entry.sha256 == Sha256Hex("new"));
  }
}

TEST_CASE("A file is gone on with where it was left, and wrong bytes never get a name") {
  Fixture fixture;
  const std::string content(100'000, 'c');
  const std::string digest = Sha256Hex(content);
  REQUIRE(fixture.store->Append(digest, 0, content.substr(0, 60'000)).ok());
  // The agent is started again.
  const auto again = fixture.Open();
  CHECK(again->PartBytes(digest) == 60'000);
  CHECK_FALSE(again->Append(digest, 10, "x").ok());
  CHECK_FALSE(again->Has(digest, content.size()));
  REQUIRE(again->Append(digest, 60'000, content.substr(60'000)).ok());
  REQUIRE(again->Finish(digest, content.size()).ok());
  CHECK(again->Has(digest, content.size()));
  CHECK(*again->Read(digest, 99'990, 10) == "cccccccccc");
  CHECK_FALSE(again->Read(digest, 99'990, 11).ok());

  const std::string other = Sha256Hex("other");
  REQUIRE(again->Append(other, 0, "wrong").ok());
  CHECK(again->Finish(other, 5).code() == StatusCode::kDataLoss);
  CHECK_FALSE(again->Has(other, 5));
  CHECK(again->PartBytes(other) == 0);
  // Too few of the right ones.
  REQUIRE(again->Append(other, 0, "oth").ok());
  CHECK(again->Finish(other, 5).code() == StatusCode::kDataLoss);
  REQUIRE(again->Finish(Sha256Hex(""), 0).ok());
  CHECK(again->Has(Sha256Hex(""), 0));
}

TEST_CASE("Two agents of a node share one copy") {
  Fixture fixture;
  WriteCaches(fixture.state());
  fixture.Publish();
  const auto other = fixture.Open(1u << 30, "uid-2");
  const auto hold = other->HoldAll();
  const auto found = other->Find(CacheClass::kMatched, kFingerprint);
  REQUIRE(found.ok());
  CHECK(InstallCaches(*other, *found, fixture.target()).ok());
}

TEST_CASE("What was used longest ago goes when the store is full, what is held does not") {
  Fixture fixture;
  WriteCaches(fixture.state());
  const auto publish = [&](const StateStore& store, char name, const std::string& seed) {
    fs::remove_all(fixture.state());
    WriteCaches(fixture.state(), seed);
    const auto snapshot = LookAtCaches(fixture.state(), kMatched);
    REQUIRE(
        PublishCaches(store, fixture.state(), kMatched, std::string(64, name), *snapshot, {}).ok());
  };
  const auto has = [](const StateStore& store, char name) {
    return store.Find(CacheClass::kMatched, std::string(64, name)).ok();
  };
  const auto age = [&](char name, int seconds) {
    const std::string path =
        fixture.folder.path() + "/store/bundles/Matched-" + std::string(64, name) + ".json";
    fs::last_write_time(path, fs::file_time_type::clock::now() - std::chrono::seconds(seconds));
  };
  const auto store = fixture.Open(250'000);  // Two of them.
  publish(*store, 'a', "1");
  publish(*store, 'b', "2");
  publish(*store, 'c', "3");
  age('a', 30);
  age('b', 20);
  age('c', 10);
  {
    const auto hold = store->HoldAll();
    store->Trim({});  // Somebody holds it.
  }
  CHECK(has(*store, 'a'));
  age('a', 30);
  store->Trim({});
  CHECK_FALSE(has(*store, 'a'));
  CHECK(has(*store, 'b'));
  CHECK(has(*store, 'c'));
  publish(*store, 'd', "4");
  age('b', 30);
  store->Trim({std::string(64, 'b')});
  CHECK(has(*store, 'b'));  // Oldest, but needed.
  CHECK_FALSE(has(*store, 'c'));
  CHECK(has(*store, 'd'));
  const auto small = fixture.Open(50'000);
  const auto snapshot = LookAtCaches(fixture.state(), kMatched);
  CHECK(PublishCaches(*small, fixture.state(), kMatched, kFingerprint, *snapshot, {})
            .status()
            .code() == StatusCode::kResourceExhausted);
}

TEST_CASE("A bundle whose list is too long to be read back is not put in") {
  const Fixture fixture;
  const std::string folders = std::string(255, 'a') + "/" + std::string(255, 'b') + "/";
  Bundle bundle{.of = CacheClass::kMatched, .fingerprint = kFingerprint, .entries = {}};
  for (int i = 0; i < 60'000; ++i) {
    bundle.entries.push_back({.path = "triton/" + folders + std::to_string(i),
                              .bytes = 1,
                              .sha256 = std::string(64, 'a'),
                              .target = {}});
  }
  const auto hold = fixture.store->HoldAll();
  const Status put = fixture.store->Put(bundle);
  CHECK(put.code() == StatusCode::kResourceExhausted);
  CHECK(put.message().find("33554432") != std::string::npos);
  CHECK(fixture.store->Find(bundle.of, bundle.fingerprint).status().code() ==
        StatusCode::kNotFound);
}

TEST_CASE("An agent that was killed in the middle has left nothing half") {
  Fixture fixture;
  WriteCaches(fixture.state());
  const Bundle bundle = fixture.Publish();
  // As if an install had been cut short, and a publication.
  const std::string staging = fixture.target() + "/.rouse-install-Matched/inductor";
  fs::create_directories(staging);
  std::ofstream(staging + "/half.py") << "half";
  std::ofstream(fixture.folder.path() + "/store/parts/.rouse-1-1-0.part") << "half";
  const auto store = fixture.Open();
  const auto hold = store->HoldAll();
  REQUIRE(InstallCaches(*store, bundle, fixture.target()).ok());
  for (const auto& [path, content] : TreeOf(fixture.target())) {
    CHECK(path.find("half") == std::string::npos);
    CHECK(path.find("rouse-install") == std::string::npos);
  }
}

TEST_CASE("A fingerprint tells classes, launches and machines apart") {
  const Machine machine{.architecture = "x86_64", .gpus = {"NVIDIA H200"}, .features = {"avx2"}};
  Machine other = machine;
  other.gpus = {"NVIDIA B200"};
  const std::string one = Fingerprint(CacheClass::kMatched, "launch", machine);
  CHECK(IsSha256Hex(one));
  CHECK(one == Fingerprint(CacheClass::kMatched, "launch", machine));
  CHECK(one != Fingerprint(CacheClass::kReusable, "launch", machine));
  CHECK(one != Fingerprint(CacheClass::kMatched, "other", machine));
  CHECK(one != Fingerprint(CacheClass::kMatched, "launch", other));
  CHECK(FeaturesOf("processor : 0\nflags\t\t: fpu sse avx2 avx512f\n") ==
        std::vector<std::string>{"avx2", "avx512f"});
  CHECK(FeaturesOf("").empty());
  CHECK_FALSE(ThisMachine({}).architecture.empty());
}
