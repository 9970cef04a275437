// The model's small files (configuration, tokenizer, templates): listing and serving them on a
// source, putting them in place on a target (docs/protocols.md §2).
//
// Among them is one that the source makes: which tensors its weight files hold. Engines decide by
// that how they build a model (vLLM: which layers of a GPTQ or AWQ checkpoint are quantised), and a
// target has no weight files to look into.

#pragma once

#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <string_view>

#include "common/http.h"
#include "common/peer_messages.h"
#include "common/result.h"

namespace rouse::agent {

/// Its name: a JSON object of {"dtype": "BF16", "shape": [2, 3]} by tensor name.
inline constexpr char kTensorsFile[] = "rouse-tensors.json";

/// Whether a file of this name holds weights: those travel as an arena, not as files.
bool IsWeightFile(std::string_view path);

/// Lists and hashes what is to travel: regular files that are no weight files and not hidden,
/// symbolic links to such inside the folder, or, where the folder is a snapshot in a Hugging Face
/// cache, to the model's blobs there. Other links are left out and logged. A file over 64 MiB is
/// left out and logged; more than 1024 files or 512 MiB in all is ResourceExhausted.
Result<ModelFiles> ListModelFiles(const std::string& folder);

/// Serves a model folder, kTensorsFile with it where there are safetensors files. Thread-safe. The
/// list is made at the first request and kept; a file that has changed since makes it be made anew.
class ModelFileSource {
 public:
  explicit ModelFileSource(std::string folder) : folder_(std::move(folder)) {}

  Result<ModelFiles> List();
  /// The bytes of the listed file with this digest. NotFound when there is none (any more).
  Result<std::string> Content(const std::string& sha256);

 private:
  const std::string folder_;
  std::mutex mutex_;
  bool listed_ = false;
  ModelFiles files_;
  std::string tensors_;  ///< Content of the file that is made here; empty when none is.
};

struct HydrateOutcome {
  Status status;
  /// The failure is this side's (disk full, folder not writable): another peer would not help.
  bool ours = false;
  std::size_t files = 0;
  std::uint64_t bytes = 0;    ///< That came over the network.
  std::size_t unchanged = 0;  ///< Were in place already.
};

/// Puts one file that arrived into `folder`. DataLoss when it is not what the list announced.
Status PutModelFile(const std::string& folder, const ModelFile& file, std::string_view content);

/// Fetches the files of the peer behind `peer` into `folder`; what is there with the right digest
/// is kept. Stops early (Cancelled) when `cancelled` says so between two files.
HydrateOutcome HydrateModelFiles(http::Client& peer, const std::string& folder,
                                 const std::function<bool()>& cancelled);

}  // namespace rouse::agent
