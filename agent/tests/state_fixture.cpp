#include "agent/tests/state_fixture.h"

#include <filesystem>
#include <fstream>
#include <sstream>

#include "common/sha256.h"

namespace rouse::agent {
namespace {

namespace fs = std::filesystem;
using json::Json;

constexpr const char* kGood = "vllm/torch_compile_cache/0123456789/rank_0_0/backbone/";

/// Sets a field of the first entry, which is a file.
HostileBundle Field(const std::string& what, const std::string& key, Json value) {
  return {what, [key, value](Json& bundle) { bundle["entries"][0][key] = value; }};
}

HostileBundle Path(const std::string& path) {
  return Field("path \"" + path.substr(0, 60) + "\"", "path", path);
}

HostileBundle Target(const std::string& target) {
  return {"link to \"" + target.substr(0, 60) + "\"",
          [target](Json& bundle) { bundle["entries"][2]["target"] = target; }};
}

HostileBundle Added(const std::string& what, const BundleEntry& entry) {
  return {what, [entry](Json& bundle) {
            Bundle one;
            one.entries = {entry};
            bundle["entries"].push_back(ToJson(one)["entries"][0]);
          }};
}

void Put(const fs::path& path, const std::string& content) {
  fs::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary) << content;
}

}  // namespace

BundleEntry FileEntry(const std::string& path, const std::string& content) {
  return {.path = path,
          .bytes = content.size(),
          .mode = 0644,
          .modified_s = 1'700'000'000,
          .modified_ns = 123'456'789,
          .sha256 = Sha256Hex(content)};
}

BundleEntry LinkEntry(const std::string& path, const std::string& target) {
  return {.path = path, .modified_s = 1'700'000'000, .target = target};
}

Bundle GoodBundle() {
  return {.of = CacheClass::kMatched,
          .fingerprint = kFingerprint,
          .entries = {FileEntry(std::string(kGood) + "artifact", "compiled"),
                      FileEntry(std::string(kGood) + "vllm_compile_cache.py", "{}"),
                      LinkEntry(std::string(kGood) + "latest", "artifact")}};
}

std::vector<HostileBundle> HostileBundles() {
  const std::string root = "vllm/torch_compile_cache";
  const std::string long_part(256, 'a');
  std::string deep = root;
  for (int i = 0; i < 400; ++i) deep += "/aaa";
  std::vector<HostileBundle> all = {
      Path("../outside"),
      Path("../../etc/cron.d/x"),
      Path(root + "/../../../outside"),
      Path(root + "/a/../../../../outside"),
      Path(root + "/.."),
      Path(root + "/../modelinfos/x"),
      Path("/etc/passwd"),
      Path("//etc/passwd"),
      Path(root),
      Path(root + "/"),
      Path(root + "//x"),
      Path(root + "/./x"),
      Path("./" + root + "/x"),
      Path(""),
      Path("."),
      Path("x"),
      Path("vllm/x"),
      Path("vllm"),
      Path("home/.bashrc"),
      Path("plugin/rouse_vllm/__init__.py"),
      Path("vllm/modelinfos/x.json"),  // Of the other class.
      Path("vllm/torch_compile_cache_x/y"),
      Path(root + "/a\nb"),
      Path(root + "/a\\b"),
      Path(root + "/a\x7f"),
      Path(root + std::string("/a\0b", 4)),
      Path(root + "/" + long_part),
      Path(deep),
      Target("/etc/passwd"),
      Target("../../../../../../etc/passwd"),
      Target("../../../../../modelinfos"),
      Target("a/../../../../../../../etc"),
      Target("nowhere"),
      Target("latest"),  // Itself.
      Target(".."),
      Target("."),
      Target("../backbone"),  // Where it lies itself.
      Target(std::string(2000, 'x')),
      Field("a device", "kind", "Device"),
      Field("a pipe", "kind", "Fifo"),
      Field("a hard link", "kind", "HardLink"),
      Field("kind of another type", "kind", 7),
      Field("setuid", "mode", 04755),
      Field("a negative mode", "mode", -1),
      Field("a negative size", "bytes", -1),
      Field("a size over the bound", "bytes", kMaxBundleFileBytes + 1),
      Field("a size that is text", "bytes", "8"),
      Field("a short digest", "sha256", "abc"),
      Field("a digest that is a path", "sha256", "../../" + std::string(58, 'a')),
      Field("a digest in capitals", "sha256", std::string(64, 'A')),
      Field("a time before 1970", "modifiedS", -1),
      Field("a time that overflows", "modifiedS", INT64_MAX),
      Field("nanoseconds over a second", "modifiedNs", 1'000'000'000),
      {"no path", [](Json& bundle) { bundle["entries"][0].erase("path"); }},
      {"a link and a file in one",
       [](Json& bundle) {
         bundle["entries"][0]["kind"] = "Link";
         bundle["entries"][0].erase("target");
       }},
      Added("one path twice", FileEntry(std::string(kGood) + "artifact", "other")),
      Added("a file below a file", FileEntry(std::string(kGood) + "artifact/x", "other")),
      Added("a file below a link", FileEntry(std::string(kGood) + "latest/x", "other")),
      Added("a link to a link", LinkEntry(std::string(kGood) + "second", "latest")),
      {"32 GiB",
       [](Json& bundle) {
         for (int i = 0; i < 9; ++i) {
           Json entry = bundle["entries"][0];
           entry["path"] = std::string(kGood) + "big" + std::to_string(i);
           entry["bytes"] = kMaxBundleFileBytes;
           bundle["entries"].push_back(entry);
         }
       }},
      {"65537 entries",
       [](Json& bundle) {
         for (std::size_t i = 0; i < kMaxBundleEntries; ++i) {
           Json entry = bundle["entries"][0];
           entry["path"] = std::string(kGood) + "n" + std::to_string(i);
           bundle["entries"].push_back(entry);
         }
       }},
      {"an entry that is no object", [](Json& bundle) { bundle["entries"].push_back("x"); }},
      {"entries that are no list", [](Json& bundle) { bundle["entries"] = Json::object(); }},
      {"another protocol", [](Json& bundle) { bundle["protocol"] = "rouse-files"; }},
      {"another version", [](Json& bundle) { bundle["version"] = 2; }},
      {"an unknown class", [](Json& bundle) { bundle["class"] = "Both"; }},
      {"a fingerprint that is a path",
       [](Json& bundle) { bundle["fingerprint"] = "../../" + std::string(58, 'a'); }},
      {"no fingerprint", [](Json& bundle) { bundle.erase("fingerprint"); }},
  };
  return all;
}

void WriteCaches(const std::string& state_folder, const std::string& seed) {
  const fs::path state = state_folder;
  Put(state / kGood / "artifact", "compiled" + seed);
  Put(state / kGood / "vllm_compile_cache.py", "{}");
  Put(state / kGood / "cache_key_factors.json", "{\"VLLM_API_KEY\": \"secret\"}");
  Put(state / kGood / "x.lock", "");
  Put(state / "inductor/ab/cab.py", "def call(): pass" + seed);
  Put(state / "inductor/locks/ab.lock", "");
  Put(state / "triton/XYZ/kernel.cubin", std::string(100'000, 'k') + seed);
  Put(state / "triton/tmp.pid_1/kernel.cubin", "half");
  Put(state / "vllm/startup_plan/startup_plan_0.json", "{}" + seed);
  Put(state / "vllm/modelinfos/qwen3.json", "{}" + seed);
  Put(state / "vllm/deep_gemm/cache/kernel.x/kernel.cubin", "gemm" + seed);
  Put(state / "vllm/assets/picture.png", "not a cache");
  fs::create_symlink("cab.py", state / "inductor/ab/link.py");
  fs::create_symlink("/etc/passwd", state / "inductor/ab/out");
}

std::map<std::string, std::string> TreeOf(const std::string& folder) {
  std::map<std::string, std::string> tree;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    const std::string path = entry.path().lexically_relative(folder).string();
    if (entry.is_symlink()) {
      tree[path] = "-> " + fs::read_symlink(entry.path()).string();
    } else if (entry.is_regular_file()) {
      std::ostringstream text;
      text << std::ifstream(entry.path(), std::ios::binary).rdbuf();
      tree[path] = text.str();
    }
  }
  return tree;
}

}  // namespace rouse::agent
