// `kubectl rouse timeline -o svg`. Pure.

#pragma once

#include <string>
#include <vector>

#include "operator/kubectl/starts.h"

namespace rouse::kubectl {

/// A picture by itself: no script, no style sheet, no font or picture from elsewhere. What ran
/// beside the phases is drawn below them; each piece tells its name and seconds as a title.
std::string TimelineSvg(const ServiceView& view, const std::vector<Start>& starts);

}  // namespace rouse::kubectl
