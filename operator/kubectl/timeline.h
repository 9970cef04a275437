// `kubectl rouse timeline`: where the time of each start went. Pure.
//
// Each phase has a letter and a colour, so that the chart says the same with and without colours.
// Starts are drawn one below the other from the moment of their decision, all to one scale: starts
// of one service may be hours apart, and what is compared is how long they took.

#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "operator/kubectl/starts.h"
#include "operator/kubectl/text.h"

namespace rouse::kubectl {

/// How a phase is drawn.
struct PhaseLook {
  std::string_view name;
  char letter = '?';
  int ansi = 245;  ///< Of the 256 colours of terminals.
  std::string_view svg = "#8a8a8a";
  std::string_view until;  ///< What ends it.
};
/// Of a phase that this program does not know: letter '?'.
PhaseLook LookOf(std::string_view phase);

/// One line for each start.
std::string TimelineText(const ServiceView& view, const std::vector<Start>& starts,
                         const Screen& screen);

/// The starts of one pod: one line for each phase, and for what ran beside them.
std::string TimelineDetail(const ServiceView& view, const std::vector<Start>& starts,
                           const Screen& screen);

}  // namespace rouse::kubectl
