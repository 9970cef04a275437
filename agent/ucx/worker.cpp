#include "agent/ucx/worker.h"

#include <poll.h>
#include <pthread.h>
#include <ucp/api/ucp.h>

#include <cerrno>

#include "agent/ucx/status.h"
#include "common/log.h"

namespace rouse::ucx {
namespace {

// How long a progress thread polls before it sleeps: longer than the pause between two requests of
// a running pull, short enough not to show as load.
constexpr std::chrono::microseconds kPollBeforeSleep{50};
// UCX's event descriptor covers its keepalive too; this bound is only for what it might miss.
constexpr std::chrono::milliseconds kLongestSleep{500};

}  // namespace

Result<std::unique_ptr<Worker>> Worker::Create(std::shared_ptr<Context> context) {
  ucp_worker_params_t params = {};
  params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE | UCP_WORKER_PARAM_FIELD_FLAGS;
  // One thread at a time, but not always the one that created it.
  params.thread_mode = UCS_THREAD_MODE_SERIALIZED;
  // Reads given up at a deadline are dropped by closing the endpoint.
  params.flags = UCP_WORKER_FLAG_IGNORE_REQUEST_LEAK;
  ucp_worker_h handle = nullptr;
  ROUSE_RETURN_IF_ERROR(
      ToStatus(ucp_worker_create(context->handle(), &params, &handle), "create a UCX worker"));
  int event_fd = -1;
  if (const ucs_status_t status = ucp_worker_get_efd(handle, &event_fd); status != UCS_OK) {
    ucp_worker_destroy(handle);
    return ToStatus(status, "get the UCX worker's event descriptor");
  }
  return std::unique_ptr<Worker>(new Worker(std::move(context), handle, event_fd));
}

Worker::~Worker() {
  ucp_worker_destroy(handle_);
}

Result<std::string> Worker::Address() const {
  ucp_address_t* address = nullptr;
  std::size_t bytes = 0;
  ROUSE_RETURN_IF_ERROR(
      ToStatus(ucp_worker_get_address(handle_, &address, &bytes), "get the UCX worker's address"));
  std::string text(reinterpret_cast<const char*>(address), bytes);
  ucp_worker_release_address(handle_, address);
  return text;
}

bool Worker::Progress() {
  return ucp_worker_progress(handle_) != 0;
}

Status Worker::Wait(std::chrono::milliseconds timeout) {
  const ucs_status_t armed = ucp_worker_arm(handle_);
  if (armed == UCS_ERR_BUSY) return {};  // something happened already
  ROUSE_RETURN_IF_ERROR(ToStatus(armed, "arm the UCX worker"));
  pollfd poll = {.fd = event_fd_, .events = POLLIN, .revents = 0};
  if (::poll(&poll, 1, static_cast<int>(timeout.count())) < 0 && errno != EINTR) {
    return FromErrno(errno, "wait for the UCX worker");
  }
  return {};
}

void Worker::Signal() {
  ucp_worker_signal(handle_);
}

ProgressThread::ProgressThread(Worker& worker, std::string name) : worker_(worker) {
  thread_ = std::jthread([this, name = std::move(name)](std::stop_token stop) {
    ::pthread_setname_np(::pthread_self(), name.c_str());
    auto last_event = std::chrono::steady_clock::now();
    while (!stop.stop_requested()) {
      if (worker_.Progress()) {
        last_event = std::chrono::steady_clock::now();
        continue;
      }
      if (std::chrono::steady_clock::now() - last_event < kPollBeforeSleep) continue;
      if (const Status status = worker_.Wait(kLongestSleep); !status.ok()) {
        log::Error("ucx progress thread cannot sleep",
                   {{"thread", name}, {"error", status.ToString()}});
        std::this_thread::sleep_for(kLongestSleep);
      }
      last_event = std::chrono::steady_clock::now();
    }
  });
}

ProgressThread::~ProgressThread() {
  thread_.request_stop();
  worker_.Signal();
}

}  // namespace rouse::ucx
