#include "agent/nccl/communicator.h"

#include <cstring>
#include <string>
#include <thread>

namespace rouse::nccl {
namespace {

constexpr std::chrono::microseconds kPoll{50};

}  // namespace

Result<Communicator> Communicator::Create(const Library& library, const memory::BroadcastSeat& seat,
                                          const Patience& patience) {
  UniqueId id{};
  static_assert(sizeof id.bytes == sizeof seat.id);
  std::memcpy(id.bytes, seat.id.data(), seat.id.size());
  Config config;
  Handle handle = nullptr;
  const Code code = library.CommInitRankConfig(&handle, seat.ranks, id, seat.rank, &config);
  const std::string what =
      "join " + std::to_string(seat.ranks) + " ranks as " + std::to_string(seat.rank);
  if (handle == nullptr) {
    ROUSE_RETURN_IF_ERROR(ToStatus(library, code, nullptr, what));
    return Internal(what + ": NCCL gave no communicator");
  }
  Communicator communicator(library, handle);
  ROUSE_RETURN_IF_ERROR(communicator.Await(code, what, patience));
  return communicator;
}

// `code` is what a call returned. Under way, the outcome shows on the communicator.
Status Communicator::Await(Code code, std::string_view what, const Patience& patience) const {
  while (code == Code::kInProgress) {
    if (patience.stop.stop_requested()) {
      return Status(StatusCode::kCancelled, std::string(what) + ": cancelled");
    }
    if (std::chrono::steady_clock::now() >= patience.until) {
      return DeadlineExceeded(std::string(what) + ": not all ranks came along in time");
    }
    std::this_thread::sleep_for(kPoll);
    Code state = Code::kSuccess;
    ROUSE_RETURN_IF_ERROR(
        ToStatus(library(), library().CommGetAsyncError(handle_.get(), &state), nullptr, what));
    code = state;
  }
  return ToStatus(library(), code, handle_.get(), what);
}

Status Communicator::Broadcast(std::byte* data, std::uint64_t bytes, void* stream,
                               const Patience& patience) {
  return Await(library().Broadcast(data, data, bytes, kUint8, 0, handle_.get(), stream),
               "start a broadcast", patience);
}

Status Communicator::Check() const {
  Code state = Code::kSuccess;
  const Code asked = library().CommGetAsyncError(handle_.get(), &state);
  if (asked == Code::kSuccess && state == Code::kInProgress) return {};
  return ToStatus(library(), asked != Code::kSuccess ? asked : state, handle_.get(), "broadcast");
}

Status Communicator::Close(const Patience& patience) {
  ROUSE_RETURN_IF_ERROR(Await(library().CommFinalize(handle_.get()), "end a broadcast", patience));
  const Library& used = library();
  return ToStatus(used, used.CommDestroy(handle_.release()), nullptr, "end a broadcast");
}

}  // namespace rouse::nccl
