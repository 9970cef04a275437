// The parts of common/http.h that need no cpprestsdk.

#include <strings.h>

#include "common/http.h"
#include "common/json.h"

namespace rouse::http {
namespace {

int HttpStatusFor(StatusCode code) {
  switch (code) {
    case StatusCode::kOk:
      return 200;
    case StatusCode::kInvalidArgument:
      return 400;
    case StatusCode::kNotFound:
      return 404;
    case StatusCode::kAlreadyExists:
    case StatusCode::kConflict:
      return 409;
    case StatusCode::kFailedPrecondition:
      return 412;
    case StatusCode::kPermissionDenied:
      return 403;
    case StatusCode::kUnavailable:
      return 503;
    case StatusCode::kDeadlineExceeded:
      return 504;
    case StatusCode::kResourceExhausted:
      return 507;
    case StatusCode::kCancelled:
      return 499;
    case StatusCode::kDataLoss:
    case StatusCode::kInternal:
      return 500;
  }
  return 500;
}

StatusCode CodeForHttpStatus(int status) {
  switch (status) {
    case 401:
    case 403:
      return StatusCode::kPermissionDenied;
    case 404:
    case 410:
      return StatusCode::kNotFound;
    case 409:
      return StatusCode::kConflict;
    case 412:
      return StatusCode::kFailedPrecondition;
    case 429:
    case 502:
    case 503:
      return StatusCode::kUnavailable;
    case 408:
    case 504:
      return StatusCode::kDeadlineExceeded;
    case 413:
    case 507:
      return StatusCode::kResourceExhausted;
    default:
      break;
  }
  if (status >= 400 && status < 500) return StatusCode::kInvalidArgument;
  return StatusCode::kUnavailable;
}

}  // namespace

bool HeaderLess::operator()(const std::string& a, const std::string& b) const {
  return ::strcasecmp(a.c_str(), b.c_str()) < 0;
}

Response JsonResponse(std::string body) {
  return {
      .status = 200, .headers = {{"Content-Type", "application/json"}}, .body = std::move(body)};
}

Response ErrorResponse(const Status& status) {
  Response response = JsonResponse(
      json::Dump({{"error", {{"code", ToString(status.code())}, {"message", status.message()}}}}));
  response.status = HttpStatusFor(status.code());
  return response;
}

Status ToStatus(const Response& response, std::string_view what) {
  if (response.status == 200) return Status();
  const std::string prefix = std::string(what) + ": HTTP " + std::to_string(response.status) + ": ";
  if (const auto body = json::Parse(response.body, "error body"); body.ok()) {
    json::Reader in(*body, "");
    json::Reader error(in.ObjectOrEmpty("error"), "error");
    const auto code = ParseStatusCode(error.StringOr("code", ""));
    if (code && *code != StatusCode::kOk) {
      return Status(*code, prefix + error.StringOr("message", ""));
    }
  }
  return Status(CodeForHttpStatus(response.status), prefix + response.body.substr(0, 500));
}

std::string UrlEncode(std::string_view text) {
  constexpr std::string_view kHex = "0123456789ABCDEF";
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    const bool unreserved = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                            (c >= '0' && c <= '9') || c == '-' || c == '.' || c == '_' || c == '~';
    if (unreserved) {
      out += c;
    } else {
      out += '%';
      out += kHex[byte >> 4];
      out += kHex[byte & 15];
    }
  }
  return out;
}

}  // namespace rouse::http
