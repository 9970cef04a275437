// `kubectl rouse explain`: why instances started the way they did, and what is being waited for.
// Pure.

#pragma once

#include <string>
#include <vector>

#include "operator/kubectl/text.h"
#include "operator/kubectl/view.h"

namespace rouse::kubectl {

/// An Event (events.k8s.io/v1), as far as it is shown.
struct EventView {
  TimePoint last;  ///< When it was seen last.
  std::int64_t count = 1;
  bool warning = false;
  std::string about;  ///< "Pod demo-1"
  std::string uid;    ///< Of what it is about.
  std::string reason;
  std::string note;
};

/// Those about the ModelService or one of its instances, oldest first.
std::vector<EventView> EventsOf(const ServiceView& view, const std::vector<Json>& events);

/// The reason of a path, taken apart: for each better path why it was not taken, and what is said
/// of the one that was.
struct PathReason {
  struct NotTaken {
    std::string path;
    std::string why;
  };
  std::vector<NotTaken> not_taken;
  std::string taken;  ///< Empty when nothing is said of it.
};
PathReason ReadPathReason(const std::string& reason);

/// Of all instances, or of `pod` alone; empty when there is no such instance.
std::string ExplainText(const ServiceView& view, const std::string& pod,
                        const std::vector<EventView>& events, TimePoint now, const Screen& screen);

}  // namespace rouse::kubectl
