#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <optional>
#include <thread>

#include "agent/tests/storage_sinks.h"

namespace rouse::storage::test {

Result<ReadReport> WithoutIoUring(int error, const std::function<Result<ReadReport>()>& read) {
  std::optional<Result<ReadReport>> report;
  // A filter holds for the thread that sets it, and for those that this one starts.
  std::jthread([&] {
    std::array<sock_filter, 4> filter = {{
        {BPF_LD | BPF_W | BPF_ABS, 0, 0, offsetof(seccomp_data, nr)},
        {BPF_JMP | BPF_JEQ | BPF_K, 0, 1, SYS_io_uring_setup},
        {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ERRNO | static_cast<unsigned>(error)},
        {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW},
    }};
    const sock_fprog program = {.len = filter.size(), .filter = filter.data()};
    if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
        ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) {
      report = FromErrno(errno, "set a seccomp filter");
      return;
    }
    report = read();
  }).join();
  return *std::move(report);
}

}  // namespace rouse::storage::test
