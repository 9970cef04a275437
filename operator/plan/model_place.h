// Where a model's folder lies, in its volume and in the pod. Pure.

#pragma once

#include <string>

#include "operator/api/model_service.h"

namespace rouse::plan {

inline constexpr char kModelDir[] = "/rouse/model";

struct ModelPlace {
  std::string source;  ///< What is mounted: inside the volume (may be empty), or on the node.
  std::string mount;   ///< Where, in the pod.
  std::string folder;  ///< The model's, in the pod; `mount` or below it.

  bool operator==(const ModelPlace&) const = default;
};

/// The model's folder alone is mounted, unless it is a snapshot in a Hugging Face cache
/// (models--OWNER--NAME/snapshots/REVISION): its files are links to ../../blobs, so all of that
/// model is mounted then, under its own name, by which the agent knows it (agent/state). The folder
/// is the same in every pod of a ModelService, whatever its volume: engines key caches by it.
ModelPlace PlaceOf(const api::Storage& storage);

}  // namespace rouse::plan
