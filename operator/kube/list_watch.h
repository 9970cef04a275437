// The list/watch protocol as a state machine. Pure: it decides which request comes next and what
// happens to the store; the informer sends the requests and tells it what came back.
//
//             list page, more to come            list page, last
//   kEmpty ──▶ kListing ⟲                ──────▶ kWatching ⟲ events, bookmarks
//                ▲  ▲ 410 or bad token: from the first page │ ended, silent, dropped, garbage:
//                └──┴──────────── 410, or no progress ──────┘ watch again from the last version
//
// A relist never shows half: between kInitBegin and kInitDone the store collects aside. A broken
// stream resumes from the version of the last event or bookmark that was taken in whole. When two
// streams in a row are silent or unreadable without any progress, the state is listed anew.
//
// Failures in a row stretch the wait before the next request (BackoffPolicy). So do lists in a row
// after which no watch delivered anything, or a server that answers every watch with 410 would be
// listed without a pause.

#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/result.h"
#include "operator/kube/api_error.h"
#include "operator/kube/backoff.h"
#include "operator/kube/resource.h"

namespace rouse::kube {

struct ListWatchOptions {
  BackoffPolicy backoff{std::chrono::milliseconds(200), std::chrono::milliseconds(30'000)};
  /// What the server is asked to end a watch after, plus up to as much again by jitter, so that
  /// many watchers do not come back together.
  std::chrono::seconds watch_timeout{300};
};

/// The next request, to be sent after `delay`.
struct Command {
  enum class Kind { kListPage, kWatch };
  Kind kind = Kind::kListPage;
  std::chrono::milliseconds delay{0};
  std::string continue_token;       ///< kListPage; empty for the first page.
  std::string resource_version;     ///< kWatch.
  std::chrono::seconds timeout{0};  ///< kWatch: `timeoutSeconds`.
};

/// What the store shall do, in order.
struct StoreEvent {
  enum class Kind {
    kInitBegin,  ///< A full list begins; forget what an earlier unfinished one brought.
    kInitApply,  ///< An object of the list.
    kInitDone,   ///< The list is whole: what it did not have is gone.
    kApply,      ///< An object was added or changed.
    kDelete,     ///< An object is gone; its last state is given.
  };
  Kind kind = Kind::kApply;
  Json object;  ///< Null for kInitBegin and kInitDone. With apiVersion and kind.
};

/// How a watch ended.
enum class StreamEnd {
  kClosed,  ///< The server ended it in order.
  kBroken,  ///< Connection lost, or never made.
  kSilent,  ///< Nothing came for too long.
};

/// Counts for metrics and tests.
struct ListWatchCounters {
  std::uint64_t lists = 0;    ///< Full lists begun.
  std::uint64_t watches = 0;  ///< Watch requests.
  std::uint64_t gone = 0;     ///< Times the server answered 410.
  std::uint64_t garbage = 0;  ///< Lines or pages that could not be read.
  std::uint64_t broken = 0;   ///< Streams that ended otherwise than in order.
};

class ListWatch {
 public:
  enum class State { kEmpty, kListing, kWatching };

  ListWatch(Resource resource, ListWatchOptions options);

  /// The next request. `jitter` in [0, 1) spreads delay and timeout. Call it once for each request;
  /// follow with the On… call that tells how it went.
  Command Next(double jitter);

  /// The text of a page arrived. An unreadable page counts as a failure and yields no events.
  std::vector<StoreEvent> OnPage(std::string_view text);
  /// A page did not arrive: `error` when the server refused, nullopt when it was not reached.
  void OnPageFailed(const std::optional<ApiError>& error);

  /// A line of the watch arrived. Not ok: close the stream now, then call OnWatchEnded; the message
  /// says why. Blank lines are nothing.
  Status OnLine(std::string_view line, std::vector<StoreEvent>* events);
  /// The watch ended after `lived`, by whoever. `error` when the server refused it at once.
  void OnWatchEnded(StreamEnd end, std::chrono::milliseconds lived,
                    const std::optional<ApiError>& error);

  State state() const { return state_; }
  const std::string& resource_version() const { return resource_version_; }
  int failures() const { return failures_; }
  const ListWatchCounters& counters() const { return counters_; }

 private:
  void Relist();
  void Progress(const std::string& version);
  void Fail(const std::optional<ApiError>& error);
  Status Garbage(const std::string& problem);

  Resource resource_;
  ListWatchOptions options_;
  State state_ = State::kEmpty;
  std::string continue_token_;
  std::string resource_version_;
  int failures_ = 0;         ///< Requests in a row that failed.
  int fruitless_ = 0;        ///< Silent or unreadable streams in a row without progress.
  int fruitless_lists_ = 0;  ///< Lists begun anew since a watch last delivered something.
  std::chrono::milliseconds server_delay_{0};  ///< What Retry-After asked for.
  // Of the current stream:
  bool progress_ = false;  ///< It delivered an event or bookmark.
  bool garbage_ = false;   ///< It delivered something unreadable.
  std::optional<ApiError> error_event_;
  ListWatchCounters counters_;
};

}  // namespace rouse::kube
