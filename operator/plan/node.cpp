#include "operator/plan/node.h"

#include "operator/plan/objects.h"

namespace rouse::plan {

Node NodeFromObject(const Json& node) {
  Node out{.name = Text(At(node, "metadata"), "name")};
  for (const Json& condition : At(At(node, "status"), "conditions")) {
    if (Text(condition, "type") == "Ready") out.lost = Text(condition, "status") != "True";
  }
  return out;
}

bool CanBeLost(std::size_t lost, std::size_t all) {
  constexpr std::size_t kFew = 2;
  constexpr std::size_t kMostPercent = 55;
  if (lost >= all) return false;
  return lost <= kFew || lost * 100 < all * kMostPercent;
}

}  // namespace rouse::plan
