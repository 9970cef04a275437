#include "common/result.h"

#include <array>
#include <cerrno>
#include <cstring>

namespace rouse {
namespace {

struct Spelling {
  StatusCode code;
  std::string_view text;
};

constexpr std::array kSpellings = {
    Spelling{StatusCode::kOk, "Ok"},
    Spelling{StatusCode::kInvalidArgument, "InvalidArgument"},
    Spelling{StatusCode::kNotFound, "NotFound"},
    Spelling{StatusCode::kAlreadyExists, "AlreadyExists"},
    Spelling{StatusCode::kConflict, "Conflict"},
    Spelling{StatusCode::kFailedPrecondition, "FailedPrecondition"},
    Spelling{StatusCode::kPermissionDenied, "PermissionDenied"},
    Spelling{StatusCode::kUnavailable, "Unavailable"},
    Spelling{StatusCode::kDeadlineExceeded, "DeadlineExceeded"},
    Spelling{StatusCode::kResourceExhausted, "ResourceExhausted"},
    Spelling{StatusCode::kDataLoss, "DataLoss"},
    Spelling{StatusCode::kCancelled, "Cancelled"},
    Spelling{StatusCode::kInternal, "Internal"},
};

StatusCode CodeForErrno(int error) {
  switch (error) {
    case ENOENT:
    case ESRCH:
      return StatusCode::kNotFound;
    case EEXIST:
      return StatusCode::kAlreadyExists;
    case EINVAL:
    case ENAMETOOLONG:
    case ENOTDIR:
    case EISDIR:
      return StatusCode::kInvalidArgument;
    case EACCES:
    case EPERM:
    case EROFS:
      return StatusCode::kFailedPrecondition;
    case ENOSPC:
    case ENOMEM:
    case EMFILE:
    case ENFILE:
    case EDQUOT:
    case ENOBUFS:
      return StatusCode::kResourceExhausted;
    case ETIMEDOUT:
      return StatusCode::kDeadlineExceeded;
    case ECONNREFUSED:
    case ECONNRESET:
    case EPIPE:
    case EAGAIN:
    case EHOSTUNREACH:
    case ENETUNREACH:
      return StatusCode::kUnavailable;
    default:
      return StatusCode::kInternal;
  }
}

}  // namespace

std::string_view ToString(StatusCode code) {
  for (const auto& [known, text] : kSpellings) {
    if (known == code) return text;
  }
  return "Internal";
}

std::optional<StatusCode> ParseStatusCode(std::string_view text) {
  for (const auto& [code, known] : kSpellings) {
    if (known == text) return code;
  }
  return std::nullopt;
}

std::string Status::ToString() const {
  if (ok()) return "Ok";
  return std::string(rouse::ToString(code_)) + ": " + message_;
}

Status Status::WithContext(std::string_view what) const {
  if (ok()) return *this;
  return Status(code_, std::string(what) + ": " + message_);
}

Status FromErrno(int error, std::string_view what) {
  return Status(CodeForErrno(error), std::string(what) + ": " + std::strerror(error));
}

}  // namespace rouse
