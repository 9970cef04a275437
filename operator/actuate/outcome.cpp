#include "operator/actuate/outcome.h"

#include <iterator>
#include <utility>

namespace rouse::actuate {
namespace {

/// The caches are behind: what they lack arrives meanwhile.
constexpr std::chrono::milliseconds kStaleRetry{200};

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

void Outcome::Refused(const Status& refusal) {
  if (refusal.code() == StatusCode::kNotFound || refusal.code() == StatusCode::kConflict) {
    again = kStaleRetry;
  } else {
    errors.push_back(refusal.ToString());
  }
}

}  // namespace rouse::actuate
