// What an API server's refusal means to us. Pure: decodes a response, decides nothing.

#pragma once

#include <chrono>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "common/result.h"

namespace rouse::kube {

/// A refused call. Decoded from the server's `Status` object; a body of another form (a proxy's
/// page) is kept shortened in `message`.
struct ApiError {
  int http_status = 0;
  std::string reason;   ///< `Conflict`, `AlreadyExists`, `Expired`, ...; empty when there is none.
  std::string message;  ///< The server's own words.
  std::optional<std::chrono::seconds> retry_after;  ///< Header, else details.retryAfterSeconds.

  /// The resourceVersion or continue token is too old (410): list again from the start.
  bool IsGone() const;

  /// The server asks for a repetition of the same call later: 429, or 5xx that names a time.
  bool IsRetryable() const;

  /// 404 NotFound; 409 AlreadyExists or Conflict by reason; 410 Conflict; 400, 405, 413, 415 and
  /// 422 InvalidArgument; 401 and 403 FailedPrecondition, with what to do where the server's words
  /// tell; 504 DeadlineExceeded; 408, 429 and other 5xx Unavailable. The message is "`what`:
  /// server's words"; `what` names verb and object.
  Status ToStatus(std::string_view what) const;
};

/// `retry_after_header` is the header's text, empty when there was none. Only the form in seconds
/// is understood; more than an hour counts as an hour.
ApiError DecodeError(int http_status, std::string_view body, std::string_view retry_after_header);

/// The same for the `Status` object of a watch's ERROR event.
ApiError DecodeStatusObject(const nlohmann::json& status);

}  // namespace rouse::kube
