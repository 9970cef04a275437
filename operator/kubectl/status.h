// `kubectl rouse status`: what runs, and what is not as it should be. Pure.

#pragma once

#include <string>
#include <vector>

#include "operator/kubectl/text.h"
#include "operator/kubectl/view.h"

namespace rouse::kubectl {

/// A block for each ModelService. `now` is what ages are counted to.
std::string StatusText(const std::vector<ServiceView>& views, TimePoint now, const Screen& screen);

/// {"modelServices": [...]}.
Json StatusJson(const std::vector<ServiceView>& views);

}  // namespace rouse::kubectl
