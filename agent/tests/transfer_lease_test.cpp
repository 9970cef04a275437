#include <catch2/catch.hpp>

#include "agent/transfer/lease_table.h"

namespace rouse::transfer {
namespace {

using std::chrono::seconds;
const TimePoint kStart{};

LeaseTable Table(std::size_t max = 2) {
  return LeaseTable({.duration = seconds(30), .max_leases = max});
}

TEST_CASE("a lease ends by itself", "[transfer]") {
  LeaseTable leases = Table();
  REQUIRE(leases.Open("a", "default/x", kStart).ok());
  REQUIRE(leases.Count(kStart + seconds(29)) == 1);
  REQUIRE(leases.Count(kStart + seconds(30)) == 0);
  REQUIRE(leases.Expire(kStart + seconds(29)).empty());
  REQUIRE(leases.Expire(kStart + seconds(30)) == std::vector<std::string>{"default/x"});
  REQUIRE(leases.Expire(kStart + seconds(31)).empty());
}

TEST_CASE("renewing a lease in time prolongs it, too late is refused", "[transfer]") {
  LeaseTable leases = Table();
  REQUIRE(leases.Open("a", "default/x", kStart).ok());
  REQUIRE(leases.Renew("a", kStart + seconds(20)).ok());
  REQUIRE(leases.Count(kStart + seconds(49)) == 1);
  REQUIRE(leases.Renew("a", kStart + seconds(50)).code() == StatusCode::kNotFound);
  REQUIRE(leases.Renew("b", kStart).code() == StatusCode::kNotFound);
}

TEST_CASE("a closed lease is gone", "[transfer]") {
  LeaseTable leases = Table();
  REQUIRE(leases.Open("a", "default/x", kStart).ok());
  REQUIRE(leases.Close("a", kStart).ok());
  REQUIRE(leases.Count(kStart) == 0);
  REQUIRE(leases.Close("a", kStart).code() == StatusCode::kNotFound);
  REQUIRE(leases.Renew("a", kStart).code() == StatusCode::kNotFound);
}

TEST_CASE("no more than the allowed leases are open at a time; ended ones do not count",
          "[transfer]") {
  LeaseTable leases = Table(2);
  REQUIRE(leases.Open("a", "default/x", kStart).ok());
  REQUIRE(leases.Open("b", "default/y", kStart + seconds(10)).ok());
  const Status full = leases.Open("c", "default/z", kStart + seconds(20));
  REQUIRE(full.code() == StatusCode::kResourceExhausted);
  REQUIRE_THAT(full.message(), Catch::Contains("default/z") && Catch::Contains("2 are open"));
  REQUIRE(leases.Open("c", "default/z", kStart + seconds(30)).ok());
}

TEST_CASE("all leases are ended at once, and those that lived are named", "[transfer]") {
  LeaseTable leases = Table();
  REQUIRE(leases.Open("a", "default/x", kStart).ok());
  REQUIRE(leases.Open("b", "default/y", kStart + seconds(20)).ok());
  REQUIRE(leases.Clear(kStart + seconds(31)) == std::vector<std::string>{"default/y"});
  REQUIRE(leases.Count(kStart + seconds(20)) == 0);
  REQUIRE(leases.Renew("b", kStart + seconds(20)).code() == StatusCode::kNotFound);
}

TEST_CASE("an id is used once", "[transfer]") {
  LeaseTable leases = Table();
  REQUIRE(leases.Open("a", "default/x", kStart).ok());
  REQUIRE(leases.Open("a", "default/y", kStart).code() == StatusCode::kAlreadyExists);
}

}  // namespace
}  // namespace rouse::transfer
