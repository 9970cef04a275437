// The only file that names io_uring's C API.

#include <liburing.h>

#include <array>
#include <cerrno>

#include "agent/storage/read_queue.h"

namespace rouse::storage {
namespace {

// What is no read: a cancellation, and the library's own timeouts on old kernels.
constexpr std::uint64_t kNoRead = LIBURING_UDATA_TIMEOUT;

class UringQueue final : public ReadQueue {
 public:
  UringQueue() = default;
  ~UringQueue() override {
    if (!ready_) return;
    // Closing a ring does not wait for what the kernel still reads, and it reads into memory that
    // is not ours.
    Cancel();
    std::vector<ReadResult> ignored;
    while (in_flight_ > 0 && Wait(std::chrono::milliseconds(1000), ignored).ok()) ignored.clear();
    ::io_uring_queue_exit(&ring_);
  }

  Status Init(std::uint32_t depth) {
    // Room for a cancellation and a timeout beside the reads.
    int error = -::io_uring_queue_init(depth + 4, &ring_, IORING_SETUP_CLAMP);
    if (error == 0) {
      ready_ = true;
      error = SupportsRead() ? 0 : ENOSYS;
    }
    if (error == 0) return {};
    return FailedPrecondition("io_uring cannot be used: " + FromErrno(error, "set up").message());
  }

  std::string_view name() const override { return "io_uring"; }

  Status Submit(const ReadRequest& request) override {
    io_uring_sqe* sqe = ::io_uring_get_sqe(&ring_);
    if (sqe == nullptr) return Internal("io_uring's submission queue is full");
    ::io_uring_prep_read(sqe, request.fd, request.memory, request.bytes, request.file_offset);
    ::io_uring_sqe_set_data64(sqe, request.id);
    // Otherwise the kernel copies what it has in memory right here, one read after the other.
    if (request.buffered) ::io_uring_sqe_set_flags(sqe, IOSQE_ASYNC);
    ++in_flight_;
    return {};
  }

  Status Wait(std::chrono::milliseconds timeout, std::vector<ReadResult>& out) override {
    __kernel_timespec until = {};
    until.tv_sec = timeout.count() / 1000;
    until.tv_nsec = timeout.count() % 1000 * 1'000'000;
    io_uring_cqe* first = nullptr;
    const int answer = ::io_uring_submit_and_wait_timeout(&ring_, &first, 1, &until, nullptr);
    if (answer < 0 && answer != -ETIME && answer != -EINTR && answer != -EAGAIN &&
        answer != -EBUSY) {
      return FromErrno(-answer, "wait for io_uring");
    }
    std::array<io_uring_cqe*, 32> batch = {};
    while (const unsigned count = ::io_uring_peek_batch_cqe(&ring_, batch.data(), batch.size())) {
      for (unsigned i = 0; i < count; ++i) {
        const std::uint64_t id = ::io_uring_cqe_get_data64(batch[i]);
        if (id == kNoRead) continue;
        out.push_back({.id = id, .bytes = batch[i]->res});
        --in_flight_;
      }
      ::io_uring_cq_advance(&ring_, count);
    }
    return {};
  }

  void Cancel() override {
    if (in_flight_ == 0) return;
    io_uring_sqe* sqe = ::io_uring_get_sqe(&ring_);
    if (sqe == nullptr) return;
    ::io_uring_prep_cancel64(sqe, 0, IORING_ASYNC_CANCEL_ANY | IORING_ASYNC_CANCEL_ALL);
    ::io_uring_sqe_set_data64(sqe, kNoRead);
    ::io_uring_submit(&ring_);
  }

 private:
  bool SupportsRead() {
    io_uring_probe* probe = ::io_uring_get_probe_ring(&ring_);
    if (probe == nullptr) return false;  // older than 5.6, as reads are
    const bool supported = ::io_uring_opcode_supported(probe, IORING_OP_READ) != 0;
    ::io_uring_free_probe(probe);
    return supported;
  }

  io_uring ring_ = {};
  bool ready_ = false;
  std::uint64_t in_flight_ = 0;
};

}  // namespace

Result<std::unique_ptr<ReadQueue>> CreateUringQueue(std::uint32_t depth) {
  auto queue = std::make_unique<UringQueue>();
  ROUSE_RETURN_IF_ERROR(queue->Init(depth));
  return std::unique_ptr<ReadQueue>(std::move(queue));
}

}  // namespace rouse::storage
