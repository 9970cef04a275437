#include "operator/kube/api_error.h"

#include <algorithm>
#include <charconv>

#include "common/json.h"

namespace rouse::kube {
namespace {

using json::Json;

constexpr std::size_t kMaxMessage = 2000;
constexpr std::int64_t kMaxRetrySeconds = 3600;

// What a person reads must not be a page of HTML or binary noise.
std::string Readable(std::string_view text) {
  std::string out;
  for (const char c : text.substr(0, 300)) {
    out += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? ' ' : c;
  }
  return text.size() > 300 ? out + "…" : out;
}

std::optional<std::chrono::seconds> ToSeconds(std::int64_t seconds) {
  if (seconds < 0) return std::nullopt;
  return std::chrono::seconds(std::min(seconds, kMaxRetrySeconds));
}

std::optional<std::chrono::seconds> ParseSeconds(std::string_view text) {
  while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
  while (!text.empty() && text.back() == ' ') text.remove_suffix(1);
  std::int64_t seconds = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), seconds);
  if (error == std::errc::result_out_of_range && end == text.data() + text.size()) {
    return ToSeconds(kMaxRetrySeconds);
  }
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return ToSeconds(seconds);
}

StatusCode CodeFor(const ApiError& error) {
  switch (error.http_status) {
    case 400:
    case 405:
    case 406:
    case 413:
    case 415:
    case 422:
      return StatusCode::kInvalidArgument;
    case 401:
    case 403:
      return StatusCode::kFailedPrecondition;
    case 404:
      return StatusCode::kNotFound;
    case 409:
      return error.reason == "AlreadyExists" ? StatusCode::kAlreadyExists : StatusCode::kConflict;
    case 410:
      return StatusCode::kConflict;
    case 504:
      return StatusCode::kDeadlineExceeded;
    default:
      // 408, 429 and 5xx pass by themselves; what else a proxy may invent is worth another try too.
      return StatusCode::kUnavailable;
  }
}

// 403 is also what admission says: quotas, PodSecurity, namespaces on their way out, webhooks. The
// reason is "Forbidden" for all of them, so only the words tell.
std::string_view RemedyOfForbidden(std::string_view message) {
  const auto says = [message](std::string_view words) {
    return message.find(words) != std::string_view::npos;
  };
  if (says("User \"") && says("\" cannot ")) {
    return "; this identity lacks the right: grant it with a Role or ClusterRole and a binding";
  }
  if (says("exceeded quota:")) return "; raise the quota, or free some of it";
  if (says("failed quota:")) return "; set the requests and limits that the quota asks for";
  if (says("violates PodSecurity")) {
    return "; change the pod, or the namespace's label pod-security.kubernetes.io/enforce";
  }
  return "";
}

std::string_view Remedy(int http_status, std::string_view message) {
  switch (http_status) {
    case 401:
      return "; the API server does not accept these credentials: check the token or client "
             "certificate and that it has not expired";
    case 403:
      return RemedyOfForbidden(message);
    default:
      return "";
  }
}

}  // namespace

bool ApiError::IsGone() const {
  return http_status == 410;
}

bool ApiError::IsRetryable() const {
  return http_status == 429 || (http_status >= 500 && retry_after.has_value());
}

Status ApiError::ToStatus(std::string_view what) const {
  std::string text(what);
  text += ": ";
  text += message.empty()
              ? "the API server answered with HTTP status " + std::to_string(http_status)
              : message + " (HTTP status " + std::to_string(http_status) + ")";
  text += Remedy(http_status, message);
  if (retry_after) text += "; try again in " + std::to_string(retry_after->count()) + " s";
  return Status(CodeFor(*this), std::move(text));
}

ApiError DecodeStatusObject(const Json& status) {
  ApiError error;
  if (!status.is_object()) return error;
  const auto code = status.find("code");
  if (code != status.end() && code->is_number_integer()) {
    const auto number = code->get<std::int64_t>();
    if (number >= 100 && number <= 599) error.http_status = static_cast<int>(number);
  }
  error.reason = StringAt(status, "reason");
  error.message = StringAt(status, "message").substr(0, kMaxMessage);
  // Some servers send the reason without the code.
  if (error.http_status == 0 && (error.reason == "Expired" || error.reason == "Gone")) {
    error.http_status = 410;
  }
  const auto details = status.find("details");
  if (details != status.end() && details->is_object()) {
    const auto after = details->find("retryAfterSeconds");
    if (after != details->end() && after->is_number_integer() && after->get<std::int64_t>() > 0) {
      error.retry_after = ToSeconds(after->get<std::int64_t>());
    }
  }
  return error;
}

ApiError DecodeError(int http_status, std::string_view body, std::string_view retry_after_header) {
  ApiError error;
  if (auto parsed = json::Parse(body, "error body", 1u << 20);
      parsed.ok() && parsed->is_object() && StringAt(*parsed, "kind") == "Status") {
    error = DecodeStatusObject(*parsed);
  } else {
    error.message = Readable(body);
  }
  error.http_status = http_status;
  if (auto after = ParseSeconds(retry_after_header)) error.retry_after = after;
  return error;
}

}  // namespace rouse::kube
