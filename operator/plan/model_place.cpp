#include "operator/plan/model_place.h"

#include <filesystem>

namespace rouse::plan {

ModelPlace PlaceOf(const api::Storage& storage) {
  std::filesystem::path folder = std::filesystem::path(storage.path).lexically_normal();
  if (!folder.has_filename()) folder = folder.parent_path();  // "a/b/"
  const std::filesystem::path snapshots = folder.parent_path();
  const std::filesystem::path model = snapshots.parent_path();
  const std::string name = model.filename().string();
  // A mount path cannot hold a colon.
  if (snapshots.filename() != "snapshots" || !name.starts_with("models--") ||
      name.find(':') != std::string::npos) {
    return {.source = storage.path, .mount = kModelDir, .folder = kModelDir};
  }
  const std::string mount = std::string(kModelDir) + "/" + name;
  return {.source = model.string(),
          .mount = mount,
          .folder = mount + "/snapshots/" + folder.filename().string()};
}

}  // namespace rouse::plan
