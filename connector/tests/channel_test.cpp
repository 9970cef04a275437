#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "connector/src/rouse_connector.h"
#include "connector/tests/support.h"

using namespace rouse::connector_test;
using Catch::Matchers::Contains;

namespace {

/// A path for a socket in a folder of its own, removed at the end.
class SocketPath {
 public:
  SocketPath() {
    char name[] = "/tmp/rouse-connector-XXXXXX";
    REQUIRE(mkdtemp(name) != nullptr);
    folder_ = name;
    path_ = folder_ + "/engine.sock";
  }
  ~SocketPath() {
    unlink(path_.c_str());
    rmdir(folder_.c_str());
  }
  const char* c_str() const { return path_.c_str(); }

  /// A socket that listens here.
  int Listen() const {
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path_.c_str(), sizeof(address.sun_path) - 1);
    if (bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0 ||
        listen(fd, 4) != 0) {
      close(fd);
      return -1;
    }
    return fd;
  }

 private:
  std::string folder_;
  std::string path_;
};

struct Received {
  int result = 0;
  std::string bytes;
  std::vector<int> fds;
};

Received Receive(int socket, size_t capacity = ROUSE_MAX_MESSAGE_BYTES,
                 size_t fd_capacity = ROUSE_MAX_MESSAGE_FDS, int timeout_ms = 1000) {
  std::string buffer(capacity, '?');
  std::vector<int> fds(fd_capacity + 1, -7);
  size_t bytes = 99;
  size_t fd_count = 99;
  Received received;
  received.result = rouse_receive(socket, buffer.data(), capacity, &bytes, fds.data(), fd_capacity,
                                  &fd_count, timeout_ms);
  REQUIRE(bytes <= capacity);
  REQUIRE(fd_count <= fd_capacity);
  received.bytes = buffer.substr(0, bytes);
  received.fds.assign(fds.begin(), fds.begin() + static_cast<long>(fd_count));
  return received;
}

}  // namespace

TEST_CASE("Bytes and descriptors arrive at the other end as they were sent", "[connector]") {
  NoDescriptorLeak no_leak;
  Pair pair;
  Fd slab(MakeSlab(10, 's'));
  int fds[] = {slab.get(), slab.get()};
  REQUIRE(rouse_send(pair.ours(), "hello", 5, fds, 2, 1000) == 0);
  Received received = Receive(pair.theirs());
  REQUIRE(received.result == 0);
  CHECK(received.bytes == "hello");
  REQUIRE(received.fds.size() == 2);
  for (int fd : received.fds) {
    CHECK(ByteAt(fd, 9) == 's');
    CHECK((fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0);
    close(fd);
  }
}

TEST_CASE("A message and a set of descriptors of the largest size pass, one more is refused",
          "[connector]") {
  NoDescriptorLeak no_leak;
  Pair pair;
  Fd slab(MakeSlab(1));
  std::string largest(ROUSE_MAX_MESSAGE_BYTES, 'x');
  std::vector<int> fds(ROUSE_MAX_MESSAGE_FDS, slab.get());
  REQUIRE(rouse_send(pair.ours(), largest.data(), largest.size(), fds.data(), fds.size(), 1000) ==
          0);
  Received received = Receive(pair.theirs());
  REQUIRE(received.result == 0);
  CHECK(received.bytes == largest);
  CHECK(received.fds.size() == ROUSE_MAX_MESSAGE_FDS);
  for (int fd : received.fds) close(fd);

  largest += 'x';
  CHECK(rouse_send(pair.ours(), largest.data(), largest.size(), nullptr, 0, 1000) == -EMSGSIZE);
  fds.push_back(slab.get());
  CHECK(rouse_send(pair.ours(), "x", 1, fds.data(), fds.size(), 1000) == -EMSGSIZE);
  CHECK_THAT(rouse_last_error(), Contains("65 descriptors"));
}

TEST_CASE("A message that does not fit is an error and closes the descriptors it brought",
          "[connector]") {
  NoDescriptorLeak no_leak;
  Pair pair;
  Fd slab(MakeSlab(1));
  RawSend(pair.theirs(), "0123456789", {slab.get(), slab.get()});
  Received received = Receive(pair.ours(), 4);
  CHECK(received.result == -EMSGSIZE);
  CHECK(received.bytes.empty());
  CHECK(received.fds.empty());
  CHECK_THAT(rouse_last_error(), Contains("longer than the 4 bytes"));
}

TEST_CASE("More descriptors than asked for are an error and none stays open", "[connector]") {
  NoDescriptorLeak no_leak;
  Pair pair;
  Fd slab(MakeSlab(1));
  SECTION("more than the caller has room for") {
    RawSend(pair.theirs(), "x", {slab.get(), slab.get(), slab.get()});
    CHECK(Receive(pair.ours(), 100, 2).result == -EMSGSIZE);
  }
  SECTION("more than a message may bring") {
    RawSend(pair.theirs(), "x", std::vector<int>(200, slab.get()));
    CHECK(Receive(pair.ours()).result == -EMSGSIZE);
  }
  CHECK_THAT(rouse_last_error(), Contains("descriptors"));
}

TEST_CASE("An empty message is taken as the end of the connection and loses no descriptor",
          "[connector]") {
  NoDescriptorLeak no_leak;
  Pair pair;
  Fd slab(MakeSlab(1));
  RawSend(pair.theirs(), "", {slab.get()});
  CHECK(Receive(pair.ours()).result == -ECONNRESET);
}

TEST_CASE("A peer that is gone is told apart from one that is silent", "[connector]") {
  NoDescriptorLeak no_leak;
  Pair pair;
  CHECK(Receive(pair.ours(), 100, 0, 20).result == -ETIMEDOUT);
  CHECK_THAT(rouse_last_error(), Contains("within 20 ms"));
  pair.CloseTheirs();
  CHECK(Receive(pair.ours()).result == -ECONNRESET);
  CHECK_THAT(rouse_last_error(), Contains("closed the connection"));
  CHECK(rouse_send(pair.ours(), "x", 1, nullptr, 0, 1000) == -EPIPE);
}

TEST_CASE("Sending to a peer that never reads ends at the deadline", "[connector]") {
  Pair pair;
  std::string message(ROUSE_MAX_MESSAGE_BYTES, 'x');
  int result = 0;
  for (int i = 0; i < 100 && result == 0; ++i) {
    result = rouse_send(pair.ours(), message.data(), message.size(), nullptr, 0, 30);
  }
  CHECK(result == -ETIMEDOUT);
}

TEST_CASE("A signal interrupts waiting for an answer and loses nothing", "[connector]") {
  Pair pair;
  struct sigaction action {};
  struct sigaction before {};
  action.sa_handler = [](int) {};
  REQUIRE(sigaction(SIGUSR1, &action, &before) == 0);
  std::atomic<int> result = 1;
  std::thread waiter([&] { result = Receive(pair.ours(), 100, 0, 20000).result; });
  // A signal that comes before the thread waits is lost: send it until it was seen.
  for (int i = 0; i < 1000 && result == 1; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    pthread_kill(waiter.native_handle(), SIGUSR1);
  }
  waiter.join();
  CHECK(result == -EINTR);
  RawSend(pair.theirs(), "late", {});
  CHECK(Receive(pair.ours()).bytes == "late");
  sigaction(SIGUSR1, &before, nullptr);
}

TEST_CASE("Connecting waits until somebody listens", "[connector]") {
  SocketPath path;
  int listening = -1;
  std::thread late([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    listening = path.Listen();
  });
  int connected = rouse_connect(path.c_str(), 5000);
  late.join();
  CHECK(connected >= 0);
  if (connected >= 0) close(connected);
  REQUIRE(listening >= 0);
  close(listening);
}

TEST_CASE("Connecting ends at the deadline and names the socket", "[connector]") {
  NoDescriptorLeak no_leak;
  SocketPath path;
  CHECK(rouse_connect(path.c_str(), 50) == -ETIMEDOUT);
  CHECK_THAT(rouse_last_error(), Contains(path.c_str()) && Contains("No such file"));
  {
    Fd listener(path.Listen());
    REQUIRE(listener.get() >= 0);
  }
  CHECK(rouse_connect(path.c_str(), 50) == -ETIMEDOUT);
  CHECK_THAT(rouse_last_error(), Contains("refused"));
}

TEST_CASE("Paths that cannot be a socket's are refused at once", "[connector]") {
  CHECK(rouse_connect("", 5000) == -EINVAL);
  CHECK(rouse_connect(nullptr, 5000) == -EINVAL);
  CHECK(rouse_connect(std::string(108, 'p').c_str(), 5000) == -ENAMETOOLONG);
}
