// What the connector's tests share: descriptors counted, raw socket peers, memfds.

#pragma once

#include <dirent.h>
#include <dlfcn.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <cstring>
#include <string>
#include <vector>

namespace rouse {

extern const char kFakeCuda[];  ///< Where the build put it.

namespace connector_test {

/// The granularity of the stand-in for libcuda.
constexpr size_t kGranule = size_t{2} << 20;

/// A variable of the stand-in for libcuda (fake_cuda.cpp), which something has had opened before.
template <typename T>
T& OfFakeCuda(const char* name) {
  void* const library = dlopen(kFakeCuda, RTLD_NOW | RTLD_NOLOAD);
  REQUIRE(library != nullptr);
  void* const found = dlsym(library, name);
  dlclose(library);
  REQUIRE(found != nullptr);
  return *static_cast<T*>(found);
}

/// How many more times cuMemCreate succeeds.
inline int& CreatesLeft() {
  return OfFakeCuda<int>("rouse_fake_cuda_creates_left");
}

inline size_t OpenDescriptors() {
  size_t count = 0;
  DIR* folder = opendir("/proc/self/fd");
  REQUIRE(folder != nullptr);
  while (readdir(folder) != nullptr) ++count;
  closedir(folder);
  return count;
}

/// Fails the test case when it ends with more or fewer descriptors than it began with.
class NoDescriptorLeak {
 public:
  NoDescriptorLeak() : before_(OpenDescriptors()) {}
  ~NoDescriptorLeak() { CHECK(OpenDescriptors() == before_); }

 private:
  size_t before_;
};

class Fd {
 public:
  explicit Fd(int value) : value_(value) {}
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;
  ~Fd() { Close(); }
  int get() const { return value_; }
  void Close() {
    if (value_ >= 0) close(value_);
    value_ = -1;
  }

 private:
  int value_;
};

/// A memfd of `bytes` bytes, all of them `fill`.
inline int MakeSlab(size_t bytes, char fill = 0) {
  int fd = memfd_create("slab", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  REQUIRE(fd >= 0);
  std::string content(bytes, fill);
  REQUIRE(write(fd, content.data(), bytes) == static_cast<ssize_t>(bytes));
  return fd;
}

inline char ByteAt(int fd, size_t offset) {
  char byte = 0;
  REQUIRE(pread(fd, &byte, 1, static_cast<off_t>(offset)) == 1);
  return byte;
}

/// Two connected SOCK_SEQPACKET ends.
class Pair {
 public:
  Pair() : Pair(Connect()) {}
  int ours() const { return ours_.get(); }
  int theirs() const { return theirs_.get(); }
  void CloseTheirs() { theirs_.Close(); }

 private:
  struct Ends {
    int fds[2];
  };
  static Ends Connect() {
    Ends ends{};
    REQUIRE(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.fds) == 0);
    return ends;
  }
  explicit Pair(Ends ends) : ours_(ends.fds[0]), theirs_(ends.fds[1]) {}

  Fd ours_;
  Fd theirs_;
};

/// Sends without any of the library's checks, as a peer that speaks nonsense may.
inline void RawSend(int socket, const std::string& bytes, const std::vector<int>& fds) {
  iovec part{const_cast<char*>(bytes.data()), bytes.size()};
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  std::vector<char> control(CMSG_SPACE(sizeof(int) * (fds.size() + 1)));
  if (!fds.empty()) {
    header.msg_control = control.data();
    header.msg_controllen = CMSG_SPACE(sizeof(int) * fds.size());
    cmsghdr* rights = CMSG_FIRSTHDR(&header);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof(int) * fds.size());
    std::memcpy(CMSG_DATA(rights), fds.data(), sizeof(int) * fds.size());
  }
  REQUIRE(sendmsg(socket, &header, MSG_NOSIGNAL) == static_cast<ssize_t>(bytes.size()));
}

}  // namespace connector_test
}  // namespace rouse
