#include "operator/actuate/outcome.h"

#include <iterator>
#include <utility>

namespace rouse::actuate {
namespace {

template <typename T>
void Append(std::vector<T>& all, std::vector<T>&& more) {
  all.insert(all.end(), std::make_move_iterator(more.begin()), std::make_move_iterator(more.end()));
}

}  // namespace

void Outcome::Add(Outcome more) {
  Append(errors, std::move(more.errors));
  Append(notes, std::move(more.notes));
  Append(failed_wakes, std::move(more.failed_wakes));
  replan = replan || more.replan;
  if (more.again) again = more.again;
}

}  // namespace rouse::actuate
