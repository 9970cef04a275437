// What a communicator does when NCCL is not there, hangs, or fails: against a stand-in library,
// since NCCL itself needs GPUs (gpu_test.cpp).

#include <dlfcn.h>

#include <catch2/catch.hpp>

#include "agent/cuda/device.h"
#include "agent/nccl/communicator.h"
#include "agent/nccl/nccl_broadcaster.h"
#include "agent/tests/fake_nccl.h"
#include "agent/tests/paths.h"

namespace rouse::nccl {
namespace {

using std::chrono::milliseconds;

// The stand-in, as new.
FakeNccl& Fake() {
  void* const opened = ::dlopen(kFakeNccl, RTLD_NOW);
  REQUIRE(opened != nullptr);
  const auto state = reinterpret_cast<FakeNccl* (*)()>(::dlsym(opened, "FakeNcclState"));
  REQUIRE(state != nullptr);
  *state() = {};
  return *state();
}

Library Opened() {
  const auto library = Library::Open(kFakeNccl);
  REQUIRE(library.status() == Status());
  return *library;
}

Patience For(milliseconds time) {
  return {std::chrono::steady_clock::now() + time, {}};
}

memory::BroadcastSeat Seat() {
  memory::BroadcastSeat seat{.id = {}, .ranks = 3, .rank = 2};
  seat.id[0] = std::byte{'x'};
  return seat;
}

TEST_CASE("a machine without NCCL, and one that does not fit, are told with the reason", "[nccl]") {
  const auto none = Library::Open("libnccl-that-is-not-there.so.2");
  REQUIRE(none.status().code() == StatusCode::kUnavailable);
  REQUIRE_THAT(none.status().message(), Catch::Contains("libnccl-that-is-not-there"));
  const auto other = Library::Open("libdl.so.2");
  REQUIRE(other.status().code() == StatusCode::kUnavailable);
  REQUIRE_THAT(other.status().message(), Catch::Contains("has no nccl"));
  for (const int version : {2804, 21399, 30000}) {
    Fake().version = version;
    const auto old = Library::Open(kFakeNccl);
    REQUIRE(old.status().code() == StatusCode::kUnavailable);
    REQUIRE_THAT(old.status().message(), Catch::Contains("needed is 2.14"));
  }
  Fake();
  REQUIRE(Opened().version == 22809);
  REQUIRE(VersionText(22809) == "2.28.9");
  REQUIRE(NcclBroadcaster(nullptr, "libnccl-that-is-not-there.so.2").status() == none.status());
}

TEST_CASE("a communicator waits for its ranks, broadcasts and closes", "[nccl]") {
  FakeNccl& fake = Fake();
  const Library library = Opened();
  std::byte data[8] = {};
  {
    auto communicator = Communicator::Create(library, Seat(), For(milliseconds(5000)));
    REQUIRE(communicator.status() == Status());
    REQUIRE(fake.ranks == 3);
    REQUIRE(fake.rank == 2);
    REQUIRE(fake.first_byte_of_id == 'x');
    REQUIRE(fake.blocking == 0);
    REQUIRE(communicator->Broadcast(data, 5, nullptr, For(milliseconds(5000))) == Status());
    REQUIRE(communicator->Broadcast(data + 5, 3, nullptr, For(milliseconds(5000))) == Status());
    REQUIRE(fake.sizes == std::vector<std::size_t>{5, 3});
    REQUIRE(communicator->Check() == Status());
    REQUIRE(communicator->Close(For(milliseconds(5000))) == Status());
  }
  REQUIRE(fake.destroyed == 1);
  REQUIRE(fake.aborted == 0);
}

TEST_CASE("a rank that never comes ends in an abort at the deadline", "[nccl]") {
  FakeNccl& fake = Fake();
  const Library library = Opened();
  fake.polls = -1;
  const auto started = std::chrono::steady_clock::now();
  const auto late = Communicator::Create(library, Seat(), For(milliseconds(50)));
  REQUIRE(late.status().code() == StatusCode::kDeadlineExceeded);
  REQUIRE(std::chrono::steady_clock::now() - started < std::chrono::seconds(5));
  REQUIRE(fake.aborted == 1);

  std::stop_source stop;
  stop.request_stop();
  const auto stopped = Communicator::Create(
      library, Seat(),
      {std::chrono::steady_clock::now() + std::chrono::hours(1), stop.get_token()});
  REQUIRE(stopped.status().code() == StatusCode::kCancelled);
  REQUIRE(fake.aborted == 2);
}

TEST_CASE("an error of NCCL is told in its words, and aborts", "[nccl]") {
  FakeNccl& fake = Fake();
  const Library library = Opened();
  fake.init = Code::kRemoteError;
  fake.last_error = "socket closed";
  const auto failed = Communicator::Create(library, Seat(), For(milliseconds(5000)));
  REQUIRE(failed.status().code() == StatusCode::kUnavailable);
  REQUIRE_THAT(failed.status().message(), Catch::Contains("3 ranks") &&
                                              Catch::Contains("remote process exited") &&
                                              Catch::Contains("socket closed"));
  REQUIRE(fake.aborted == 1);

  // Refused at once: there is nothing to abort.
  fake.init = Code::kInvalidUsage;
  const auto refused = Communicator::Create(library, Seat(), For(milliseconds(5000)));
  REQUIRE(refused.status().code() == StatusCode::kInvalidArgument);
  REQUIRE(fake.aborted == 1);
}

TEST_CASE("a broadcast or an end that fails aborts too", "[nccl]") {
  FakeNccl& fake = Fake();
  const Library library = Opened();
  std::byte data[8] = {};
  {
    auto communicator = Communicator::Create(library, Seat(), For(milliseconds(5000)));
    REQUIRE(communicator.ok());
    fake.broadcast = Code::kUnhandledCudaError;
    REQUIRE(communicator->Broadcast(data, 8, nullptr, For(milliseconds(5000))).code() ==
            StatusCode::kInternal);
    REQUIRE(communicator->Check().code() == StatusCode::kInternal);
    REQUIRE(fake.aborted == 0);
  }
  REQUIRE(fake.aborted == 1);
  {
    auto communicator = Communicator::Create(library, Seat(), For(milliseconds(5000)));
    REQUIRE(communicator.ok());
    fake.polls = -1;
    REQUIRE(communicator->Close(For(milliseconds(20))).code() == StatusCode::kDeadlineExceeded);
    REQUIRE(communicator->Check() == Status());  // under way is no error
  }
  REQUIRE(fake.aborted == 2);
  REQUIRE(fake.destroyed == 0);
}

TEST_CASE("processes of one network namespace and host are one domain", "[nccl]") {
  REQUIRE_FALSE(BroadcastDomain().empty());
  REQUIRE(BroadcastDomain() == BroadcastDomain());
  REQUIRE(BroadcastDomain().size() <= 256);
}

}  // namespace
}  // namespace rouse::nccl
