#include "agent/state/kept_list.h"

#include <filesystem>

#include "agent/state/tree.h"
#include "common/json.h"
#include "common/log.h"
#include "common/protocol.h"
#include "common/sha256.h"

namespace rouse::agent {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kKeptProtocol = "rouse-kept";
constexpr int kKeptVersion = 1;
constexpr std::size_t kMaxKeptText = 1u << 20;
constexpr std::size_t kMaxListed = 4096;  // About as many as fit.

Result<std::vector<KeptEntry>> Decode(const std::string& text, const std::string& path) {
  ROUSE_ASSIGN_OR_RETURN(const json::Json document, json::Parse(text, path, kMaxKeptText));
  json::Reader in(document, "");
  ROUSE_RETURN_IF_ERROR(CheckProtocol(in, kKeptProtocol, kKeptVersion));
  auto kept = in.Objects("bundles", kMaxListed, [](json::Reader& entry) {
    KeptEntry one{.key = {.of = entry.Enum<CacheClass>("class", kCacheClasses),
                          .fingerprint = entry.String("fingerprint")},
                  .bytes = static_cast<std::uint64_t>(
                      entry.Int("bytes", 0, static_cast<std::int64_t>(kMaxBundleBytes))),
                  .copies = static_cast<std::uint32_t>(entry.Int("copies", 1, kMaxStateCopies)),
                  .used_at_us = entry.Int("usedAtUs")};
    if (!IsSha256Hex(one.key.fingerprint)) {
      entry.Fail("fingerprint", "expected 64 lower-case hex digits");
    }
    return one;
  });
  ROUSE_RETURN_IF_ERROR(in.status());
  return kept;
}

}  // namespace

Status WriteKept(const std::string& store_folder, const std::string& owner,
                 const std::vector<KeptEntry>& kept) {
  json::Json bundles = json::Json::array();
  for (const KeptEntry& entry : kept) {
    bundles.push_back({{"class", ToString(entry.key.of)},
                       {"fingerprint", entry.key.fingerprint},
                       {"bytes", entry.bytes},
                       {"copies", entry.copies},
                       {"usedAtUs", entry.used_at_us}});
  }
  return WriteFileBelow(store_folder, {.path = "kept/" + owner + ".json", .modified = {}},
                        json::Dump({{"protocol", kKeptProtocol},
                                    {"version", kKeptVersion},
                                    {"bundles", std::move(bundles)}}));
}

std::vector<KeptEntry> ReadKept(const std::string& store_folder, const std::string& owner) {
  const std::string path = store_folder + "/kept/" + owner + ".json";
  std::error_code error;
  if (!fs::exists(path, error)) return {};
  const auto text = ReadWholeFile(path, kMaxKeptText);
  auto kept = text.ok() ? Decode(*text, path) : text.status();
  if (kept.ok()) return *std::move(kept);
  log::Warning("the list of kept bundles is not used",
               {{"path", path}, {"error", kept.status().ToString()}});
  return {};
}

Result<std::map<std::string, std::uint64_t>> KeptByAnybody(const std::string& store_folder) {
  const std::string folder = store_folder + "/kept";
  std::map<std::string, std::uint64_t> bytes;
  std::error_code error;
  if (!fs::exists(folder, error) && !error) return bytes;  // Nobody has kept anything yet.
  const auto gone = fs::file_time_type::clock::now() - std::chrono::seconds(kKeptGoneS);
  const auto take = [&](const fs::directory_entry& list) -> Status {
    std::error_code vanished;
    const auto written = list.last_write_time(vanished);
    if (vanished) return Status();
    if (written < gone) {
      fs::remove(list.path(), vanished);
      return Status();
    }
    if (!IsFileOfAtMost(list, kMaxKeptText)) return Status();
    const std::string path = list.path().string();
    const auto text = ReadWholeFile(path, kMaxKeptText);
    if (text.status().code() == StatusCode::kNotFound) return Status();  // Removed meanwhile.
    ROUSE_RETURN_IF_ERROR(text.status());
    const auto kept = Decode(*text, path);
    if (!kept.ok()) return Status();
    for (const KeptEntry& entry : *kept) bytes[entry.key.fingerprint] = entry.bytes;
    return Status();
  };
  ROUSE_RETURN_IF_ERROR(VisitFolder(folder, take));
  return bytes;
}

}  // namespace rouse::agent
