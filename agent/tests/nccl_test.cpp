// What a communicator does when NCCL is not there, hangs, or fails: against a stand-in library,
// since NCCL itself needs GPUs (gpu_test.cpp).

#include <dlfcn.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <functional>
#include <string>

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

TEST_CASE("a broadcast that cannot be going over NVLink is given up", "[nccl]") {
  REQUIRE(CheckRate(0, 0.9) == Status());
  REQUIRE(CheckRate(std::uint64_t{30} << 30, 1.5) == Status());
  const Status slow = CheckRate(std::uint64_t{4} << 30, 1.01);
  REQUIRE(slow.code() == StatusCode::kDeadlineExceeded);
  REQUIRE_THAT(slow.message(), Catch::Contains("4.25") && Catch::Contains("NVLink"));
  REQUIRE_FALSE(CheckRate(0, 1.01).ok());
}

// The domain that a process has after it has done `apart`.
std::string DomainAfter(const std::function<bool()>& apart) {
  int ends[2];
  REQUIRE(::pipe(ends) == 0);
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    const std::string name = apart() ? DomainName() : "not apart";
    ::_exit(::write(ends[1], name.data(), name.size()) == static_cast<ssize_t>(name.size()) ? 0
                                                                                            : 1);
  }
  ::close(ends[1]);
  std::string name(512, '\0');
  name.resize(static_cast<std::size_t>(std::max<ssize_t>(::read(ends[0], name.data(), 512), 0)));
  ::close(ends[0]);
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  REQUIRE(status == 0);
  return name;
}

TEST_CASE("processes that NCCL takes for those of one machine are one domain", "[nccl]") {
  const std::string here = DomainName();
  REQUIRE_FALSE(here.empty());
  REQUIRE(here.size() <= 256);
  REQUIRE(DomainAfter([] { return true; }) == here);
  REQUIRE(DomainAfter([] { return ::unshare(CLONE_NEWIPC | CLONE_NEWNS) == 0; }) == here);

  const std::string network = DomainAfter([] { return ::unshare(CLONE_NEWNET) == 0; });
  const std::string name =
      DomainAfter([] { return ::unshare(CLONE_NEWUTS) == 0 && ::sethostname("another", 7) == 0; });
  // Every container has a /dev/shm of its own, on the host's network too.
  const std::string shared_memory = DomainAfter([] {
    return ::unshare(CLONE_NEWNS) == 0 &&
           ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
           ::mount("none", "/dev/shm", "tmpfs", 0, nullptr) == 0;
  });
  for (const std::string& other : {network, name, shared_memory}) {
    REQUIRE_THAT(other, !Catch::Contains("not apart"));
    REQUIRE_FALSE(other.empty());
    REQUIRE(other != here);
  }
}

}  // namespace
}  // namespace rouse::nccl
