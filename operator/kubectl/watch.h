// --watch: shows ModelServices anew whenever they or their pods change, until the process is ended.

#pragma once

#include <functional>
#include <string>
#include <vector>

#include "operator/kube/client.h"
#include "operator/kubectl/view.h"

namespace rouse::kubectl {

struct WatchOptions {
  std::string ns;    ///< Empty: all namespaces.
  std::string name;  ///< Empty: all ModelServices there.
  /// What is shown of them at this moment. On this thread.
  std::function<std::string(const std::vector<ServiceView>& views, TimePoint now)> render;
};

/// On a terminal each picture takes the place of the one before; elsewhere they follow each other,
/// with an empty line between, and only when an object has changed. While the API server cannot be
/// reached the last picture stays, and the reason is shown below. Returns when standard output is
/// closed, or when the ModelService of that name is gone (NotFound).
Status Watch(kube::Client& client, const WatchOptions& options);

}  // namespace rouse::kubectl
