// The one error vocabulary of all programs.
//
// A function that can fail returns Status, or Result<T> when it also yields a value. The code says
// what the caller may do about it (see the comment on each); the message says what failed, on which
// object, and what to do. Codes travel over the wire unchanged (docs/protocols.md), so their
// spelling is part of that contract.
//
// Exceptions stay inside third-party calls: the file that makes the call turns them into a Status.

#pragma once

#include <cassert>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

namespace rouse {

enum class StatusCode {
  kOk,
  kInvalidArgument,     ///< The request can never succeed: report it, do not retry.
  kNotFound,            ///< The object is gone: usually the end of the work, not a failure.
  kAlreadyExists,       ///< The object is there already: success if it is ours.
  kConflict,            ///< Someone else wrote first: read again and retry at once.
  kFailedPrecondition,  ///< The two sides do not fit together: choose another way.
  kPermissionDenied,    ///< Who asks may not: report it; another certificate is needed.
  kUnavailable,         ///< The peer is not there now: retry with backoff.
  kDeadlineExceeded,    ///< The peer is there and too slow: retry, or choose another peer.
  kResourceExhausted,   ///< Memory, disk or a bound is used up: report it, retry later.
  kDataLoss,            ///< Bytes arrived and are wrong: never use them, choose another peer.
  kCancelled,           ///< We asked for it to stop.
  kInternal,            ///< A broken invariant of ours: report it loudly.
};

/// The code as it is spelled on the wire, for example "NotFound".
std::string_view ToString(StatusCode code);

/// The code with this spelling; nullopt when there is none.
std::optional<StatusCode> ParseStatusCode(std::string_view text);

/// The outcome of an operation that yields no value.
class [[nodiscard]] Status {
 public:
  /// Success.
  Status() = default;
  Status(StatusCode code, std::string message) : code_(code), message_(std::move(message)) {}

  bool ok() const { return code_ == StatusCode::kOk; }
  StatusCode code() const { return code_; }
  const std::string& message() const& { return message_; }
  /// Of a temporary, as in result.status().message(): a string of its own, which a reference that
  /// is bound to it keeps alive.
  std::string message() && { return std::move(message_); }

  /// "NotFound: pod default/demo-0 ...", for logs.
  std::string ToString() const;

  /// The same code with "`what`: " before the message; success stays success.
  Status WithContext(std::string_view what) const;

  bool operator==(const Status&) const = default;

 private:
  StatusCode code_ = StatusCode::kOk;
  std::string message_;
};

inline Status InvalidArgument(std::string message) {
  return Status(StatusCode::kInvalidArgument, std::move(message));
}
inline Status NotFound(std::string message) {
  return Status(StatusCode::kNotFound, std::move(message));
}
inline Status FailedPrecondition(std::string message) {
  return Status(StatusCode::kFailedPrecondition, std::move(message));
}
inline Status PermissionDenied(std::string message) {
  return Status(StatusCode::kPermissionDenied, std::move(message));
}
inline Status Unavailable(std::string message) {
  return Status(StatusCode::kUnavailable, std::move(message));
}
inline Status DeadlineExceeded(std::string message) {
  return Status(StatusCode::kDeadlineExceeded, std::move(message));
}
inline Status DataLoss(std::string message) {
  return Status(StatusCode::kDataLoss, std::move(message));
}
inline Status Internal(std::string message) {
  return Status(StatusCode::kInternal, std::move(message));
}

/// The Status for a failed system call: `what` plus errno's text, coded by errno.
Status FromErrno(int error, std::string_view what);

/// A T, or the Status (never ok) that says why there is none.
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value)
      : state_(std::in_place_index<0>, std::move(value)) {}  // NOLINT(google-explicit-constructor)
  Result(Status error)
      : state_(std::in_place_index<1>, std::move(error)) {  // NOLINT(google-explicit-constructor)
    assert(!std::get<1>(state_).ok());
  }

  bool ok() const { return state_.index() == 0; }
  Status status() const { return ok() ? Status() : std::get<1>(state_); }

  /// Requires ok().
  const T& operator*() const& { return std::get<0>(state_); }
  T& operator*() & { return std::get<0>(state_); }
  T&& operator*() && { return std::get<0>(std::move(state_)); }
  const T* operator->() const { return &std::get<0>(state_); }
  T* operator->() { return &std::get<0>(state_); }

 private:
  std::variant<T, Status> state_;
};

}  // namespace rouse

/// Returns the Status of `expression` from the calling function unless it is ok.
#define ROUSE_RETURN_IF_ERROR(expression)                                                        \
  do {                                                                                           \
    if (::rouse::Status rouse_status_ = (expression); !rouse_status_.ok()) return rouse_status_; \
  } while (false)

#define ROUSE_CONCAT_INNER_(a, b) a##b
#define ROUSE_CONCAT_(a, b) ROUSE_CONCAT_INNER_(a, b)
/// `ROUSE_ASSIGN_OR_RETURN(auto x, F());` declares x from the value of F(), or returns its Status.
#define ROUSE_ASSIGN_OR_RETURN(declaration, expression)       \
  auto ROUSE_CONCAT_(rouse_result_, __LINE__) = (expression); \
  if (!ROUSE_CONCAT_(rouse_result_, __LINE__).ok())           \
    return ROUSE_CONCAT_(rouse_result_, __LINE__).status();   \
  declaration = *std::move(ROUSE_CONCAT_(rouse_result_, __LINE__))
