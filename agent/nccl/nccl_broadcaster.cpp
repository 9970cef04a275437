#include "agent/nccl/nccl_broadcaster.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <fstream>
#include <thread>
#include <vector>

#include "agent/cuda/handles.h"
#include "agent/nccl/communicator.h"

namespace rouse::nccl {
namespace {

using Clock = std::chrono::steady_clock;
using memory::BroadcastOptions;
using memory::BroadcastReport;
using memory::BroadcastSeat;

/// A tenth of what NVLink brought, and several times what networks bring between two processes.
constexpr double kLeastBytesPerSecond = 20e9;

double Since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

class Broadcaster final : public memory::Broadcaster {
 public:
  Broadcaster(std::shared_ptr<const cuda::Device> device, const Library& library)
      : device_(std::move(device)), library_(library) {}

  Result<memory::BroadcastId> NewId() override {
    UniqueId unique{};
    ROUSE_RETURN_IF_ERROR(
        ToStatus(library_, library_.GetUniqueId(&unique), nullptr, "begin a broadcast"));
    memory::BroadcastId id{};
    std::memcpy(id.data(), unique.bytes, id.size());
    return id;
  }

  Result<BroadcastReport> Send(const BroadcastSeat& seat, const memory::Arena& arena,
                               const BroadcastOptions& options) override {
    if (seat.rank != 0) return InvalidArgument("rank 0 sends, not " + std::to_string(seat.rank));
    // NCCL reads the root's bytes and writes none.
    return Run(seat, const_cast<std::byte*>(arena.span().data()), arena.bytes(), options);
  }

  Result<BroadcastReport> Receive(const BroadcastSeat& seat, memory::Arena& arena,
                                  const BroadcastOptions& options) override {
    if (seat.rank < 1) return InvalidArgument("rank 0 sends");
    return Run(seat, arena.span().data(), arena.bytes(), options);
  }

 private:
  Result<BroadcastReport> Run(const BroadcastSeat& seat, std::byte* data, std::uint64_t bytes,
                              const BroadcastOptions& options) {
    if (seat.ranks < 2 || seat.rank >= seat.ranks) {
      return InvalidArgument("rank " + std::to_string(seat.rank) + " of " +
                             std::to_string(seat.ranks));
    }
    const cuda::Current current(*device_);
    ROUSE_ASSIGN_OR_RETURN(const cuda::Stream stream, cuda::MakeStream(device_->driver()));
    BroadcastReport report;
    Status status;
    {
      const Clock::time_point started = Clock::now();
      auto communicator =
          Communicator::Create(library_, seat, {started + options.setup_deadline, options.stop});
      if (!communicator.ok()) return communicator.status();
      report.setup_seconds = Since(started);
      const Clock::time_point connected = Clock::now();
      status = Move(*communicator, data, bytes, stream.get(), options);
      report.transfer_seconds = Since(connected);
      if (status.ok()) {
        // All bytes are here; a rank that does not close in order costs nothing but its abort.
        (void)communicator->Close({Clock::now() + options.progress_deadline, options.stop});
      }
    }
    // Aborted kernels end by themselves, and only then is the arena the caller's again.
    if (!status.ok()) device_->driver().cuStreamSynchronize(stream.get());
    if (!status.ok()) return status;
    return report;
  }

  Status Move(Communicator& communicator, std::byte* data, std::uint64_t bytes, CUstream stream,
              const BroadcastOptions& options) {
    const cuda::Driver& driver = device_->driver();
    Clock::time_point last = Clock::now();
    std::vector<cuda::Event> arrived;
    for (std::uint64_t at = 0; at < bytes; at += kBroadcastPieceBytes) {
      ROUSE_RETURN_IF_ERROR(
          communicator.Broadcast(data + at, std::min(kBroadcastPieceBytes, bytes - at), stream,
                                 {last + options.progress_deadline, options.stop}));
      ROUSE_ASSIGN_OR_RETURN(cuda::Event event, cuda::MakeEvent(driver));
      ROUSE_CUDA_RETURN_IF_ERROR(driver, cuEventRecord(event.get(), stream), "record an event");
      arrived.push_back(std::move(event));
    }
    const Clock::time_point first = last;
    last = Clock::now();
    for (std::size_t next = 0; next < arrived.size();) {
      const CUresult answer = driver.cuEventQuery(arrived[next].get());
      if (answer == CUDA_SUCCESS) {
        ++next;
        last = Clock::now();
        continue;
      }
      if (answer != CUDA_ERROR_NOT_READY) {
        return cuda::ToStatus(driver, answer, "broadcast on " + device_->name());
      }
      ROUSE_RETURN_IF_ERROR(communicator.Check());
      ROUSE_RETURN_IF_ERROR(CheckRate(next * kBroadcastPieceBytes, Since(first)));
      if (options.stop.stop_requested()) {
        return Status(StatusCode::kCancelled, "the broadcast was cancelled");
      }
      if (Clock::now() - last > options.progress_deadline) {
        return DeadlineExceeded("nothing of the broadcast arrived on " + device_->name() + " for " +
                                std::to_string(options.progress_deadline.count()) + " ms");
      }
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
    return {};
  }

  const std::shared_ptr<const cuda::Device> device_;
  const Library library_;
};

/// Keeps nothing: a library that was opened once stays open, and so does a device in use.
class EveryGpu final : public memory::Broadcasting {
 public:
  explicit EveryGpu(std::string library) : library_(std::move(library)) {}

  Status Check() override {
    ROUSE_RETURN_IF_ERROR(Library::Open(library_).status());
    return cuda::DeviceCount().status();
  }

  memory::BroadcastDomain Domain() override {
    const auto gpus = cuda::DeviceCount();
    return {.name = DomainName(), .gpus = gpus.ok() ? static_cast<std::size_t>(*gpus) : 0};
  }

  Result<std::unique_ptr<memory::Broadcaster>> On(const std::string& gpu) override {
    ROUSE_ASSIGN_OR_RETURN(auto device, cuda::Device::Open(gpu));
    return NcclBroadcaster(std::move(device), library_);
  }

 private:
  const std::string library_;
};

}  // namespace

Result<std::unique_ptr<memory::Broadcaster>> NcclBroadcaster(
    std::shared_ptr<const cuda::Device> device, const std::string& library) {
  ROUSE_ASSIGN_OR_RETURN(const Library opened, Library::Open(library));
  return std::unique_ptr<memory::Broadcaster>(
      std::make_unique<Broadcaster>(std::move(device), opened));
}

std::shared_ptr<memory::Broadcasting> NcclBroadcasting(const std::string& library) {
  return std::make_shared<EveryGpu>(library);
}

std::string DomainName() {
  std::array<char, 65> host{};
  struct stat network {};
  struct stat shared_memory {};
  std::string boot;
  std::getline(std::ifstream("/proc/sys/kernel/random/boot_id"), boot);
  if (::gethostname(host.data(), host.size() - 1) != 0 || boot.empty() ||
      ::stat("/proc/self/ns/net", &network) != 0 || ::stat("/dev/shm", &shared_memory) != 0) {
    return "";
  }
  return std::string(host.data()) + "/" + boot + "/" + std::to_string(network.st_ino) + "/" +
         std::to_string(shared_memory.st_dev);
}

Status CheckRate(std::uint64_t bytes, double seconds) {
  const double rate = static_cast<double>(bytes) / seconds;
  if (seconds < 1 || rate >= kLeastBytesPerSecond) return {};
  return DeadlineExceeded("a broadcast at " + std::to_string(rate / 1e9) +
                          " GB/s: NCCL does not use NVLink (NCCL_DEBUG=INFO says what it uses)");
}

}  // namespace rouse::nccl
