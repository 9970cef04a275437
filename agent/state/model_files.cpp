#include "agent/state/model_files.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>

#include "agent/memory/owned_fd.h"
#include "agent/state/tree.h"
#include "agent/storage/checkpoint_files.h"
#include "common/log.h"
#include "common/plain_path.h"
#include "common/sha256.h"

namespace rouse::agent {
namespace {

namespace fs = std::filesystem;

constexpr int kMaxDepth = 8;
constexpr std::string_view kWeightSuffixes[] = {
    ".safetensors", ".bin",  ".pt",  ".pth",       ".gguf",    ".ggml",   ".ckpt",
    ".h5",          ".onnx", ".npz", ".onnx_data", ".msgpack", ".tflite", ".ot"};

bool Inside(const fs::path& path, const fs::path& folder) {
  const auto mismatch = std::mismatch(folder.begin(), folder.end(), path.begin(), path.end());
  return mismatch.first == folder.end();
}

/// Where the bytes of a model's files may lie: in its folder, and where that is a snapshot in a
/// Hugging Face cache, whose files are links, in the blobs of the same model:
///   models--OWNER--NAME/blobs/DIGEST
///   models--OWNER--NAME/snapshots/REVISION/config.json -> ../../blobs/DIGEST
class ModelRoot {
 public:
  /// `error` is set when there is no such folder.
  ModelRoot(const std::string& folder, std::error_code& error)
      : folder_(fs::canonical(folder, error)) {
    const fs::path snapshots = folder_.parent_path();
    const fs::path cache = snapshots.parent_path();
    if (snapshots.filename() != "snapshots" || !cache.filename().string().starts_with("models--")) {
      return;
    }
    std::error_code ignored;
    if (fs::is_directory(fs::symlink_status(cache / "blobs", ignored))) blobs_ = cache / "blobs";
  }

  const fs::path& folder() const { return folder_; }
  /// Whether `real`, a canonical path, is one of the model's.
  bool Holds(const fs::path& real) const {
    return Inside(real, folder_) || (!blobs_.empty() && Inside(real, blobs_));
  }

 private:
  fs::path folder_;
  fs::path blobs_;  ///< Empty when the folder is no snapshot.
};

Result<ModelFile> Describe(const std::string& real, const std::string& relative) {
  const memory::OwnedFd fd(::open(real.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  if (!fd.valid()) return FromErrno(errno, "open " + real);
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0) return FromErrno(errno, "look at " + real);
  ModelFile file{.path = relative,
                 .bytes = static_cast<std::uint64_t>(info.st_size),
                 .mode = info.st_mode & 0777u,
                 .sha256 = ""};
  ROUSE_ASSIGN_OR_RETURN(file.sha256, Sha256OfFile(fd.get(), real));
  return file;
}

/// Where the entry's bytes are, if it is a file that may travel; empty otherwise.
std::string RealPath(const fs::directory_entry& entry, const ModelRoot& root) {
  std::error_code error;
  fs::path real = entry.path();
  if (entry.is_symlink(error)) {
    real = fs::canonical(entry.path(), error);
    if (error || !root.Holds(real)) {
      log::Warning(error ? "model file left out: its link leads nowhere"
                         : "model file left out: its link leads out of the model's folder",
                   {{"path", entry.path().string()}, {"target", real.string()}});
      return "";
    }
  }
  const auto status = fs::symlink_status(real, error);
  return !error && fs::is_regular_file(status) ? real.string() : "";
}

void SortByPath(ModelFiles& files) {
  std::sort(files.files.begin(), files.files.end(),
            [](const ModelFile& a, const ModelFile& b) { return a.path < b.path; });
}

}  // namespace

bool IsWeightFile(std::string_view path) {
  return std::any_of(std::begin(kWeightSuffixes), std::end(kWeightSuffixes),
                     [&](std::string_view suffix) { return path.ends_with(suffix); });
}

Result<ModelFiles> ListModelFiles(const std::string& folder) {
  std::error_code error;
  const ModelRoot root(folder, error);
  if (error) return FromErrno(error.value(), "open model folder " + folder);
  fs::recursive_directory_iterator walk(root.folder(), error);
  if (error) return FromErrno(error.value(), "list model folder " + folder);
  ModelFiles out;
  std::uint64_t total = 0;
  for (const fs::recursive_directory_iterator end; walk != end; walk.increment(error)) {
    if (error) return FromErrno(error.value(), "list model folder " + folder);
    const std::string name = walk->path().filename().string();
    if (name.starts_with(".") || walk.depth() >= kMaxDepth) {
      walk.disable_recursion_pending();
      continue;
    }
    const std::string relative = walk->path().lexically_relative(root.folder()).string();
    if (IsWeightFile(relative)) continue;
    const std::string real = RealPath(*walk, root);
    if (real.empty() || !IsPlainPath(relative)) continue;
    const auto bytes = fs::file_size(real, error);
    if (error) return FromErrno(error.value(), "look at " + real);
    if (bytes > kMaxModelFileBytes) {
      log::Warning("model file left out: it is over 64 MiB",
                   {{"path", relative}, {"bytes", bytes}});
      continue;
    }
    total += bytes;
    if (out.files.size() >= kMaxModelFiles || total > kMaxModelFilesBytes) {
      return Status(
          StatusCode::kResourceExhausted,
          "model folder " + folder +
              " has more than 1024 small files or 512 MiB of them: remove what the engine "
              "does not need");
    }
    ROUSE_ASSIGN_OR_RETURN(ModelFile file, Describe(real, relative));
    out.files.push_back(std::move(file));
  }
  if (error) return FromErrno(error.value(), "list model folder " + folder);
  SortByPath(out);
  return out;
}

namespace {

/// What kTensorsFile is to hold; empty where no safetensors file is, or none that can be read.
std::string DescribeWeightFiles(const std::string& folder) {
  const auto files = storage::CheckpointFiles::Open(folder, {});
  if (!files.ok()) {
    // As it is for a checkpoint of another format, and on a target.
    if (files.status().code() != StatusCode::kNotFound) {
      log::Warning("peers are not told which tensors the weight files hold",
                   {{"reason", files.status().message()}});
    }
    return "";
  }
  std::string text = storage::DescribeTensors(files->checkpoint());
  if (text.size() <= kMaxModelFileBytes) return text;
  log::Warning("peers are not told which tensors the weight files hold: it takes over 64 MiB",
               {{"bytes", text.size()}});
  return "";
}

}  // namespace

Result<ModelFiles> ModelFileSource::List() {
  const std::scoped_lock lock(mutex_);
  if (!listed_) {
    ROUSE_ASSIGN_OR_RETURN(files_, ListModelFiles(folder_));
    tensors_ = DescribeWeightFiles(folder_);
    if (!tensors_.empty()) {
      std::erase_if(files_.files, [](const ModelFile& file) { return file.path == kTensorsFile; });
      files_.files.push_back({.path = kTensorsFile,
                              .bytes = tensors_.size(),
                              .mode = 0644,
                              .sha256 = Sha256Hex(tensors_)});
      SortByPath(files_);
    }
    listed_ = true;
  }
  return files_;
}

Result<std::string> ModelFileSource::Content(const std::string& sha256) {
  ROUSE_ASSIGN_OR_RETURN(const ModelFiles files, List());
  for (const ModelFile& file : files.files) {
    if (file.sha256 != sha256) continue;
    if (file.path == kTensorsFile) {
      const std::scoped_lock lock(mutex_);
      if (!tensors_.empty()) return tensors_;
    }
    std::error_code error;
    const ModelRoot root(folder_, error);
    const fs::path real = error ? fs::path() : fs::canonical(root.folder() / file.path, error);
    if (!error && root.Holds(real)) {
      auto content = ReadWholeFile(real.string(), kMaxModelFileBytes);
      if (content.ok() && Sha256Hex(*content) == sha256) return content;
    }
    const std::scoped_lock lock(mutex_);
    listed_ = false;
    return NotFound("model file " + file.path + " has changed since it was listed: list again");
  }
  return NotFound("no model file has the digest " + sha256.substr(0, 64));
}

Status PutModelFile(const std::string& folder, const ModelFile& file, std::string_view content) {
  if (content.size() != file.bytes || Sha256Hex(content) != file.sha256) {
    return DataLoss("model file " + file.path +
                    " arrived with other bytes than its list announced (" +
                    std::to_string(content.size()) + " bytes, " + std::to_string(file.bytes) +
                    " announced): take another peer");
  }
  Status status =
      WriteFileBelow(folder, {.path = file.path, .mode = file.mode, .modified = {}}, content);
  if (status.code() == StatusCode::kResourceExhausted) {
    return Status(status.code(), status.message() + ": give the model folder's volume more room");
  }
  return status;
}

namespace {

Result<ModelFiles> FetchList(http::Client& peer) {
  ROUSE_ASSIGN_OR_RETURN(const http::Response listed, peer.Send({.target = "/v1/files"}, 4u << 20));
  if (listed.status != 200) return http::ToStatus(listed, "list model files");
  ROUSE_ASSIGN_OR_RETURN(const json::Json document, json::Parse(listed.body, "model files"));
  ROUSE_ASSIGN_OR_RETURN(ModelFiles files, ModelFilesFromJson(document));
  for (const ModelFile& file : files.files) {
    if (IsWeightFile(file.path)) {
      return InvalidArgument("the peer lists weight file " + file.path + " among the small files");
    }
  }
  return files;
}

Result<std::string> FetchFile(http::Client& peer, const ModelFile& file) {
  ROUSE_ASSIGN_OR_RETURN(http::Response got,
                         peer.Send({.target = "/v1/files/" + file.sha256}, kMaxModelFileBytes));
  if (got.status != 200) return http::ToStatus(got, "fetch model file " + file.path);
  return std::move(got.body);
}

bool InPlace(const std::string& folder, const ModelFile& file) {
  const auto existing = ReadWholeFile(folder + "/" + file.path, kMaxModelFileBytes);
  return existing.ok() && existing->size() == file.bytes && Sha256Hex(*existing) == file.sha256;
}

}  // namespace

HydrateOutcome HydrateModelFiles(http::Client& peer, const std::string& folder,
                                 const std::function<bool()>& cancelled) {
  HydrateOutcome outcome;
  const auto files = FetchList(peer);
  outcome.status = files.status();
  if (!files.ok()) return outcome;
  // Only its parent need be a volume.
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) {
    outcome.ours = true;
    outcome.status =
        FailedPrecondition("the model folder " + folder + " cannot be made: " + error.message() +
                           "; give the agent a volume there that it may write to");
    return outcome;
  }
  for (const ModelFile& file : files->files) {
    if (cancelled()) {
      outcome.status = Status(StatusCode::kCancelled, "hydrate " + folder + ": stopped");
      return outcome;
    }
    ++outcome.files;
    if (InPlace(folder, file)) {
      ++outcome.unchanged;
      continue;
    }
    const auto content = FetchFile(peer, file);
    outcome.status = content.ok() ? PutModelFile(folder, file, *content) : content.status();
    if (!outcome.status.ok()) {
      outcome.ours = content.ok() && outcome.status.code() != StatusCode::kDataLoss;
      return outcome;
    }
    outcome.bytes += content->size();
  }
  return outcome;
}

}  // namespace rouse::agent
