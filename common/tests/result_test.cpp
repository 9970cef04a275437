#include "common/result.h"

#include <catch2/catch.hpp>
#include <cerrno>
#include <memory>

namespace rouse {
namespace {

Result<int> Half(int value) {
  if (value % 2 != 0) return InvalidArgument(std::to_string(value) + " is odd");
  return value / 2;
}

Status Quarter(int value, int* out) {
  ROUSE_ASSIGN_OR_RETURN(const int half, Half(value));
  ROUSE_ASSIGN_OR_RETURN(*out, Half(half));
  return Status();
}

TEST_CASE("every status code reads back from its spelling") {
  for (int i = 0; i <= static_cast<int>(StatusCode::kInternal); ++i) {
    const auto code = static_cast<StatusCode>(i);
    CHECK(ParseStatusCode(ToString(code)) == code);
  }
  CHECK_FALSE(ParseStatusCode("Nonsense").has_value());
}

TEST_CASE("an error passes through ROUSE_ASSIGN_OR_RETURN unchanged") {
  int out = 0;
  CHECK(Quarter(8, &out).ok());
  CHECK(out == 2);
  CHECK(Quarter(6, &out) == InvalidArgument("3 is odd"));
}

TEST_CASE("context goes before the message and leaves the code alone") {
  CHECK(NotFound("pod demo-0").WithContext("delete").ToString() == "NotFound: delete: pod demo-0");
  CHECK(Status().WithContext("delete").ok());
}

TEST_CASE("a reference to the message of a Result's status stays good") {
  // Status by value from status(): a reference into it would dangle (AddressSanitizer says so).
  const Result<int> failed = Half(3);
  const std::string& why = failed.status().message();
  CHECK(why == "3 is odd");
}

TEST_CASE("errno is coded by what the caller may do about it") {
  CHECK(FromErrno(ENOSPC, "write x").code() == StatusCode::kResourceExhausted);
  CHECK(FromErrno(ENOENT, "open x").code() == StatusCode::kNotFound);
  CHECK(FromErrno(ECONNREFUSED, "connect").code() == StatusCode::kUnavailable);
}

TEST_CASE("a Result can hold what cannot be copied") {
  Result<std::unique_ptr<int>> result(std::make_unique<int>(7));
  REQUIRE(result.ok());
  CHECK(**std::move(result) == 7);
}

}  // namespace
}  // namespace rouse
