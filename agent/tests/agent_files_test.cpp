// The model's small files and the plugin: listing, fetching from a peer, and what an enemy or a
// full disk does to that.

#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>

#include "agent/state/model_files.h"
#include "agent/state/tree.h"
#include "agent/tests/agent_process.h"
#include "agent/tests/fake_engine.h"
#include "agent/tests/fake_operator.h"
#include "agent/tests/storage_fixture.h"
#include "common/sha256.h"

using namespace rouse;
using namespace rouse::agent;

namespace fs = std::filesystem;

namespace {

std::vector<std::string> Names(const ModelFiles& files) {
  std::vector<std::string> names;
  for (const ModelFile& file : files.files) names.push_back(file.path);
  return names;
}

std::string Content(const std::string& path) {
  auto content = ReadWholeFile(path, 64 << 20);
  return content.ok() ? *content : content.status().ToString();
}

ModelFile Describe(const std::string& path, const std::string& content) {
  return {.path = path, .bytes = content.size(), .mode = 0644, .sha256 = Sha256Hex(content)};
}

std::size_t Entries(const std::string& folder) {
  return static_cast<std::size_t>(
      std::distance(fs::recursive_directory_iterator(folder), fs::recursive_directory_iterator()));
}

void PublishOneMiB(const AgentProcess& agent, const FakeOperator& fake_operator,
                   const std::string& pod) {
  auto engine = FakeEngine::Connect(agent.socket());
  REQUIRE(engine->Hello(TestIdentity())->type() == "Welcome");
  REQUIRE(engine->CreateFillPublish(TestIdentity(), 0, TestBytes(1 << 20, 1))->type() == "Ok");
  REQUIRE(fake_operator.WaitForServable(pod));
}

}  // namespace

TEST_CASE("Small files travel, weight files, hidden files and links out of the folder do not") {
  const TempFolder folder;
  folder.Write("outside/secret.json", "secret");
  folder.Write("model/config.json", "{}");
  folder.Write("model/tokenizer/vocab.txt", "a b c");
  folder.Write("model/model.safetensors.index.json", "{}");
  folder.Write("model/model-00001-of-00002.safetensors", "weights");
  folder.Write("model/pytorch_model.bin", "weights");
  folder.Write("model/q4.gguf", "weights");
  folder.Write("model/.git/config", "hidden");
  fs::create_symlink(folder.path() + "/model/config.json", folder.path() + "/model/alias.json");
  fs::create_symlink(folder.path() + "/outside/secret.json", folder.path() + "/model/secret.json");
  fs::create_directory_symlink(folder.path() + "/outside", folder.path() + "/model/folder");
  REQUIRE(::mkfifo((folder.path() + "/model/pipe").c_str(), 0644) == 0);
  const auto files = ListModelFiles(folder.path() + "/model");
  INFO(files.status().ToString());
  REQUIRE(files.ok());
  CHECK(Names(*files) == std::vector<std::string>{"alias.json", "config.json",
                                                  "model.safetensors.index.json",
                                                  "tokenizer/vocab.txt"});
  CHECK(files->files[3].sha256 == Sha256Hex("a b c"));
}

TEST_CASE("A snapshot in a Hugging Face cache travels with what its links lead to") {
  const TempFolder folder;
  const std::string cache = "hub/models--Qwen--Qwen3-8B/";
  const std::string snapshot = folder.path() + "/" + cache + "snapshots/abc";
  folder.Write(cache + "blobs/1", "{}");
  folder.Write(cache + "blobs/2", "a b c");
  folder.Write(cache + "blobs/3", "weights");
  folder.Write("hub/models--Other--Model/blobs/4", "another model's");
  folder.Write("hub/token", "secret");
  folder.Write(cache + "refs/main", "abc");
  fs::create_directories(snapshot + "/tokenizer");
  fs::create_symlink("../../blobs/1", snapshot + "/config.json");
  fs::create_symlink("../../../blobs/2", snapshot + "/tokenizer/vocab.txt");
  fs::create_symlink("../../blobs/3", snapshot + "/model.safetensors");
  fs::create_symlink("../../../models--Other--Model/blobs/4", snapshot + "/other.json");
  fs::create_symlink("../../../token", snapshot + "/token.json");
  fs::create_symlink("../../refs/main", snapshot + "/ref.json");
  fs::create_symlink("../../blobs/gone", snapshot + "/gone.json");
  fs::create_symlink("loop.json", snapshot + "/loop.json");

  ModelFileSource source(snapshot);
  const auto files = source.List();
  INFO(files.status().ToString());
  REQUIRE(files.ok());
  CHECK(Names(*files) == std::vector<std::string>{"config.json", "tokenizer/vocab.txt"});
  CHECK(*source.Content(Sha256Hex("a b c")) == "a b c");

  // Pointed elsewhere after it was listed.
  fs::remove(snapshot + "/config.json");
  folder.Write("hub/elsewhere", "{}");
  fs::create_symlink("../../../elsewhere", snapshot + "/config.json");
  CHECK(source.Content(Sha256Hex("{}")).status().code() == StatusCode::kNotFound);
}

TEST_CASE("A target is told which tensors the weight files hold, which it has not") {
  using storage::test::MakeShard;
  const TempFolder folder;
  folder.Write("source/config.json", "{}");
  folder.Write("source/model-2.safetensors",
               MakeShard({{"layer.qweight", "I32", {2}, "12345678"}}));
  folder.Write("source/model-1.safetensors", MakeShard({{"layer.bias", "BF16", {1, 2}, "1234"}}));
  const std::string told = R"({"layer.bias":{"dtype":"BF16","shape":[1,2]},)"
                           R"("layer.qweight":{"dtype":"I32","shape":[2]}})";
  ModelFileSource source(folder.path() + "/source");
  const auto files = source.List();
  REQUIRE(files.ok());
  REQUIRE(Names(*files) == std::vector<std::string>{"config.json", "rouse-tensors.json"});
  CHECK(files->files[1].sha256 == Sha256Hex(told));
  CHECK(*source.Content(Sha256Hex(told)) == told);
  const std::string target = folder.path() + "/target";
  fs::create_directory(target);
  REQUIRE(PutModelFile(target, files->files[1], told).ok());
  // It serves others in turn.
  ModelFileSource next(target);
  CHECK(Names(*next.List()) == std::vector<std::string>{"rouse-tensors.json"});
  CHECK(*next.Content(Sha256Hex(told)) == told);
  // Where there are weight files, what they say counts.
  folder.Write("source/rouse-tensors.json", "{}");
  ModelFileSource again(folder.path() + "/source");
  CHECK(again.List()->files[1].sha256 == Sha256Hex(told));
  folder.Write("source/model-2.safetensors", "no header");
  ModelFileSource damaged(folder.path() + "/source");
  CHECK(Names(*damaged.List()) == std::vector<std::string>{"config.json", "rouse-tensors.json"});
  CHECK(*damaged.Content(Sha256Hex("{}")) == "{}");
}

TEST_CASE("Links to a folder that only looks like a cache's are not followed") {
  const TempFolder folder;
  folder.Write("models--a--b/elsewhere/1", "secret");
  fs::create_directories(folder.path() + "/models--a--b/snapshots/abc");
  fs::create_directory_symlink("elsewhere", folder.path() + "/models--a--b/blobs");
  fs::create_symlink("../../blobs/1", folder.path() + "/models--a--b/snapshots/abc/x.json");
  CHECK(ListModelFiles(folder.path() + "/models--a--b/snapshots/abc")->files.empty());
}

TEST_CASE("A file over 64 MiB is left out, too many files are refused") {
  const TempFolder folder;
  folder.Write("config.json", "{}");
  folder.Write("huge.json", "");
  fs::resize_file(folder.path() + "/huge.json", kMaxModelFileBytes + 1);
  CHECK(Names(*ListModelFiles(folder.path())) == std::vector<std::string>{"config.json"});
  for (std::size_t i = 0; i < kMaxModelFiles; ++i) folder.Write("f" + std::to_string(i), "");
  CHECK(ListModelFiles(folder.path()).status().code() == StatusCode::kResourceExhausted);
}

TEST_CASE("A file that changed after it was listed is not served under its old digest") {
  const TempFolder folder;
  folder.Write("config.json", "old");
  ModelFileSource source(folder.path());
  const std::string digest = source.List()->files[0].sha256;
  CHECK(*source.Content(digest) == "old");
  folder.Write("config.json", "new");
  CHECK(source.Content(digest).status().code() == StatusCode::kNotFound);
  CHECK(source.List()->files[0].sha256 == Sha256Hex("new"));
  CHECK(source.Content(Sha256Hex("never listed")).status().code() == StatusCode::kNotFound);
}

TEST_CASE("Files are put in place whole, readable, and only where they belong") {
  const TempFolder folder;
  folder.Write("outside/x", "untouched");
  folder.Write("model/plain", "");
  fs::create_directory_symlink(folder.path() + "/outside", folder.path() + "/model/link");
  const std::string model = folder.path() + "/model";
  ::umask(0077);
  REQUIRE(PutModelFile(model, Describe("a/b/c.json", "{}"), "{}").ok());
  ::umask(0022);
  CHECK(Content(model + "/a/b/c.json") == "{}");
  CHECK((fs::status(model + "/a/b/c.json").permissions() & fs::perms::others_read) !=
        fs::perms::none);
  CHECK((fs::status(model + "/a/b").permissions() & fs::perms::others_exec) != fs::perms::none);
  for (const std::string path : {"../outside/x", "/etc/x", "a/../../x", "./x", "a//x", "", "a/",
                                 "a\nb", "link/x", "plain/x"}) {
    INFO(path);
    CHECK(PutModelFile(model, Describe(path, "bad"), "bad").code() == StatusCode::kInvalidArgument);
  }
  CHECK(Content(folder.path() + "/outside/x") == "untouched");
  const Status wrong = PutModelFile(model, Describe("config.json", "{}"), "[]");
  CHECK(wrong.code() == StatusCode::kDataLoss);
  CHECK(wrong.message().find("config.json") != std::string::npos);
  CHECK_FALSE(fs::exists(model + "/config.json"));
}

TEST_CASE("A target's model folder is filled from its peer, the plugin from the image") {
  FakeOperator fake_operator;
  const TempFolder plugin;
  plugin.Write("rouse_vllm/__init__.py", "print()");
  plugin.Write("librouse_connector.so", "elf");
  AgentProcess source("demo-0", fake_operator.url(), {});
  source.folder().Write("model/config.json", "{\"a\": 1}");
  source.folder().Write("model/tokenizer/vocab.txt", std::string(3 << 20, 'v'));
  source.folder().Write("model/model.safetensors", "weights");
  PublishOneMiB(source, fake_operator, "demo-0");
  {
    AgentProcess target(
        "demo-1", fake_operator.url(),
        {{"ROUSE_PATH", "Peer"},
         {"ROUSE_MODEL_FILES", "Peer"},
         {"ROUSE_PLUGIN_SOURCE", plugin.path()},
         {"ROUSE_PLUGIN_DIR",
          plugin.path() + "/../" + fs::path(plugin.path()).filename().string() + "-out"}});
    // The plugin folder does not exist: the agent says so, and the engine may not start.
    REQUIRE(fake_operator.WaitForState("demo-1", AgentState::kFailed));
    CHECK(fake_operator.Last("demo-1")->message.find("plugin") != std::string::npos);
  }
  const TempFolder out;
  // As of a snapshot in a Hugging Face cache: only a folder above it is a volume.
  const TempFolder volume;
  const std::string model_dir = volume.path() + "/models--a--b/snapshots/0f";
  AgentProcess target("demo-2", fake_operator.url(),
                      {{"ROUSE_PATH", "Peer"},
                       {"ROUSE_MODEL_FILES", "Peer"},
                       {"ROUSE_MODEL_DIR", model_dir},
                       {"ROUSE_PLUGIN_SOURCE", plugin.path()},
                       {"ROUSE_PLUGIN_DIR", out.path()}});
  REQUIRE(fake_operator.WaitForServable("demo-2"));
  REQUIRE(fake_operator.WaitForState("demo-2", AgentState::kReady));
  CHECK(Content(model_dir + "/config.json") == "{\"a\": 1}");
  CHECK(Content(model_dir + "/tokenizer/vocab.txt") == std::string(3 << 20, 'v'));
  CHECK(Entries(model_dir) == 3);
  CHECK(Content(out.path() + "/rouse_vllm/__init__.py") == "print()");
  CHECK(Entries(out.path()) == 3);
}

TEST_CASE("A peer that sends another file than it listed, or lists what it may not, is not used") {
  FakeOperator fake_operator;
  AgentProcess source("demo-0", fake_operator.url(), {});
  source.folder().Write("model/config.json", "{}");
  PublishOneMiB(source, fake_operator, "demo-0");
  const std::string address = fake_operator.Last("demo-0")->address;
  std::string expected;
  FakeSourceProxy::Change change;
  SECTION("other bytes") {
    expected = "config.json arrived with other bytes";
    change = [](const auto& request, auto& answer) {
      if (request.target.starts_with("/v1/files/")) answer.body = "[]";
    };
  }
  SECTION("a path out of the folder") {
    expected = "not a plain relative path";
    change = [](const auto& request, auto& answer) {
      if (request.target != "/v1/files") return;
      json::Json body = json::Json::parse(answer.body);
      body["files"][0]["path"] = "../../etc/passwd";
      answer.body = body.dump();
    };
  }
  SECTION("a weight file") {
    expected = "weight file";
    change = [](const auto& request, auto& answer) {
      if (request.target != "/v1/files") return;
      json::Json body = json::Json::parse(answer.body);
      body["files"][0]["path"] = "model.safetensors";
      answer.body = body.dump();
    };
  }
  FakeSourceProxy proxy(address, change);
  fake_operator.NamePeers({{.pod = "demo-0", .node = "node-a", .address = proxy.url()}});
  AgentProcess target("demo-1", fake_operator.url(),
                      {{"ROUSE_PATH", "Peer"},
                       {"ROUSE_MODEL_FILES", "Peer"},
                       {"ROUSE_PEER_DEADLINE_SECONDS", "2"}});
  REQUIRE(fake_operator.WaitForState("demo-1", AgentState::kFailed));
  INFO(fake_operator.Last("demo-1")->message);
  CHECK(fake_operator.Last("demo-1")->message.find(expected) != std::string::npos);
  CHECK(Entries(target.model_dir()) == 0);
}

TEST_CASE("Part files that a killed program of the same number left are no obstacle") {
  const TempFolder folder;
  for (int i = 0; i < 100; ++i) {
    folder.Write(".rouse-" + std::to_string(::getpid()) + "-" + std::to_string(i) + ".part",
                 "left");
  }
  const Status written =
      WriteFileBelow(folder.path(), {.path = "config.json", .modified = {}}, "{}");
  INFO(written.ToString());
  CHECK(written.ok());
  CHECK(Content(folder.path() + "/config.json") == "{}");
}

TEST_CASE("A full disk is reported with the file and the remedy, and leaves no part behind") {
  // A mount namespace of our own, so that a disk of 1 MiB can be had.
  if (::geteuid() == 0) {
    REQUIRE(::unshare(CLONE_NEWNS) == 0);
  } else {
    REQUIRE(::unshare(CLONE_NEWNS | CLONE_NEWUSER) == 0);
  }
  REQUIRE(::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0);
  const TempFolder disk;
  REQUIRE(::mount("tmpfs", disk.path().c_str(), "tmpfs", 0, "size=1m") == 0);
  {
    FakeOperator fake_operator;
    AgentProcess source("demo-0", fake_operator.url(), {});
    source.folder().Write("model/config.json", "{}");
    source.folder().Write("model/tokenizer.json", std::string(2 << 20, 't'));
    PublishOneMiB(source, fake_operator, "demo-0");
    AgentProcess target(
        "demo-1", fake_operator.url(),
        {{"ROUSE_PATH", "Peer"}, {"ROUSE_MODEL_FILES", "Peer"}, {"ROUSE_MODEL_DIR", disk.path()}});
    REQUIRE(fake_operator.WaitForState("demo-1", AgentState::kFailed));
    const std::string message = fake_operator.Last("demo-1")->message;
    INFO(message);
    CHECK(message.find("tokenizer.json") != std::string::npos);
    CHECK(message.find("No space left") != std::string::npos);
    CHECK(message.find("more room") != std::string::npos);
    CHECK(Entries(disk.path()) == 1);  // config.json, whole.
  }
  CHECK(::umount(disk.path().c_str()) == 0);
}
