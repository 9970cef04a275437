#include "agent/cuda/copy_engine.h"

#include <algorithm>
#include <array>
#include <optional>
#include <thread>
#include <vector>

#include "agent/cuda/block_digester.h"
#include "agent/cuda/handles.h"

namespace rouse::cuda {
namespace {

using memory::Arena;
using memory::BlockDigest;
using memory::CopyOptions;
using memory::kDigestBlockBytes;
using memory::OnPiece;
using Clock = std::chrono::steady_clock;

constexpr std::uint64_t kPieceBytes = 256u << 20;
constexpr std::size_t kCopyStreams = 4;
/// Pieces under way: enough that copies never wait for a digest to come back.
constexpr std::size_t kSlots = 16;
constexpr std::size_t kDigestStreams = 4;

/// Where the piece that begins at `offset` ends: at most kPieceBytes long, across no slab boundary,
/// so that each copy stays within one allocation on both sides.
std::uint64_t PieceEnd(std::uint64_t offset, std::uint64_t bytes, std::uint64_t from_slab,
                       std::uint64_t to_slab) {
  const auto boundary = [offset](std::uint64_t unit) { return (offset / unit + 1) * unit; };
  return std::min({bytes, boundary(kPieceBytes), boundary(from_slab), boundary(to_slab)});
}

/// What one piece needs while it is under way.
struct Slot {
  Event copied;
  Event digested;
  DeviceBuffer on_device;  // block digests
  PinnedBuffer on_host;    // the same, here
  std::uint64_t offset = 0;
  std::uint64_t bytes = 0;
  bool busy = false;
};

Status Check(const Arena* from, const Arena& to, const CopyOptions& options) {
  if (from != nullptr && from->bytes() != to.bytes()) {
    return InvalidArgument("copy an arena of " + std::to_string(from->bytes()) +
                           " bytes into one of " + std::to_string(to.bytes()));
  }
  // So that every piece is a number of whole chunks.
  for (const std::uint64_t unit :
       {kPieceBytes, to.slab_bytes(), from != nullptr ? from->slab_bytes() : kPieceBytes}) {
    if (options.chunk_bytes == 0 || options.chunk_bytes % kDigestBlockBytes != 0 ||
        unit % options.chunk_bytes != 0) {
      return InvalidArgument("chunks of " + std::to_string(options.chunk_bytes) +
                             " bytes; they must be a multiple of " +
                             std::to_string(kDigestBlockBytes) + " and a part of " +
                             std::to_string(unit));
    }
  }
  return {};
}

class Engine final : public memory::CopyEngine {
 public:
  Engine(std::shared_ptr<const Device> device, BlockDigester digester)
      : device_(std::move(device)), driver_(device_->driver()), digester_(std::move(digester)) {}

  ~Engine() override {
    const Current current(*device_);
    slots_ = {};
    copy_ = {};
    digest_ = {};
    digester_.reset();
  }

  Status Prepare() {
    for (Stream& stream : copy_) {
      ROUSE_ASSIGN_OR_RETURN(stream, MakeStream(driver_));
    }
    for (Stream& stream : digest_) {
      ROUSE_ASSIGN_OR_RETURN(stream, MakeStream(driver_));
    }
    constexpr std::uint64_t kDigestBytes = kPieceBytes / kDigestBlockBytes * sizeof(BlockDigest);
    for (Slot& slot : slots_) {
      ROUSE_ASSIGN_OR_RETURN(slot.copied, MakeEvent(driver_));
      ROUSE_ASSIGN_OR_RETURN(slot.digested, MakeEvent(driver_));
      ROUSE_ASSIGN_OR_RETURN(slot.on_device, MakeDeviceBuffer(driver_, kDigestBytes));
      ROUSE_ASSIGN_OR_RETURN(slot.on_host, MakePinnedBuffer(driver_, kDigestBytes));
    }
    return {};
  }

  Status Copy(const Arena& from, Arena& to, const CopyOptions& options,
              const OnPiece& on_piece) override {
    return Run(&from, to, options, on_piece);
  }

  Status Digest(const Arena& arena, const CopyOptions& options, const OnPiece& on_piece) override {
    return Run(nullptr, arena, options, on_piece);
  }

 private:
  Status Run(const Arena* from, const Arena& to, const CopyOptions& options,
             const OnPiece& on_piece) {
    ROUSE_RETURN_IF_ERROR(Check(from, to, options));
    const Current current(*device_);
    const Status status = Pump(from, to, options, on_piece);
    // After a failure pieces may still be under way.
    for (const auto& streams : {std::span<const Stream>(copy_), std::span<const Stream>(digest_)}) {
      for (const Stream& stream : streams) driver_.cuStreamSynchronize(stream.get());
    }
    for (Slot& slot : slots_) slot.busy = false;
    return status;
  }

  Status Pump(const Arena* from, const Arena& to, const CopyOptions& options,
              const OnPiece& on_piece) {
    std::uint64_t next = 0;
    std::uint64_t delivered = 0;
    std::size_t number = 0;
    Clock::time_point last = Clock::now();
    while (delivered < to.bytes()) {
      if (options.stop.stop_requested()) {
        return Status(StatusCode::kCancelled, "copying was cancelled");
      }
      for (Slot& slot : slots_) {
        if (slot.busy || next == to.bytes()) continue;
        slot.offset = next;
        slot.bytes = PieceEnd(next, to.bytes(), from != nullptr ? from->slab_bytes() : kPieceBytes,
                              to.slab_bytes()) -
                     next;
        ROUSE_RETURN_IF_ERROR(StartPiece(from, to, slot, number++, options.digest));
        next += slot.bytes;
      }
      bool moved = false;
      for (Slot& slot : slots_) {
        if (!slot.busy) continue;
        const CUresult answer = driver_.cuEventQuery(slot.digested.get());
        if (answer == CUDA_ERROR_NOT_READY) continue;
        ROUSE_RETURN_IF_ERROR(ToStatus(driver_, answer, "copy on " + device_->name()));
        ROUSE_RETURN_IF_ERROR(options.digest ? Deliver(to, slot, on_piece)
                                             : on_piece({slot.offset, slot.bytes, {}}));
        delivered += slot.bytes;
        slot.busy = false;
        moved = true;
      }
      if (moved) {
        last = Clock::now();
      } else if (Clock::now() - last > options.progress_deadline) {
        return DeadlineExceeded("nothing was copied on " + device_->name() + " for " +
                                std::to_string(options.progress_deadline.count()) + " ms");
      } else {
        std::this_thread::sleep_for(std::chrono::microseconds(20));
      }
    }
    return {};
  }

  Status StartPiece(const Arena* from, const Arena& to, Slot& slot, std::size_t number,
                    bool with_digests) {
    const CUdeviceptr at = Address(to.span().data()) + slot.offset;
    const CUstream digest = digest_[number % digest_.size()].get();
    slot.busy = true;
    if (from != nullptr) {
      const CUstream copy = copy_[number % copy_.size()].get();
      ROUSE_CUDA_RETURN_IF_ERROR(
          driver_,
          cuMemcpyDtoDAsync(at, Address(from->span().data()) + slot.offset, slot.bytes, copy),
          "start a copy");
      ROUSE_CUDA_RETURN_IF_ERROR(driver_, cuEventRecord(slot.copied.get(), copy),
                                 "record an event");
      ROUSE_CUDA_RETURN_IF_ERROR(driver_, cuStreamWaitEvent(digest, slot.copied.get(), 0),
                                 "wait for an event");
    }
    const std::uint64_t blocks = with_digests ? slot.bytes / kDigestBlockBytes : 0;
    ROUSE_RETURN_IF_ERROR(digester_->Launch(at, blocks, slot.on_device.get(), digest));
    if (blocks > 0) {
      ROUSE_CUDA_RETURN_IF_ERROR(driver_,
                                 cuMemcpyDtoHAsync(slot.on_host.get(), slot.on_device.get(),
                                                   blocks * sizeof(BlockDigest), digest),
                                 "fetch digests");
    }
    ROUSE_CUDA_RETURN_IF_ERROR(driver_, cuEventRecord(slot.digested.get(), digest),
                               "record an event");
    return {};
  }

  Status Deliver(const Arena& to, const Slot& slot, const OnPiece& on_piece) {
    const std::uint64_t whole = slot.bytes / kDigestBlockBytes;
    const auto* const digests = static_cast<const BlockDigest*>(slot.on_host.get());
    const std::uint64_t rest = slot.bytes % kDigestBlockBytes;
    if (rest == 0) return on_piece({slot.offset, slot.bytes, {digests, whole}});
    // The arena's end: less than a block, digested here.
    std::vector<std::byte> end(rest);
    ROUSE_CUDA_RETURN_IF_ERROR(
        driver_,
        cuMemcpyDtoH(end.data(),
                     Address(to.span().data()) + slot.offset + whole * kDigestBlockBytes, rest),
        "fetch the end of an arena");
    std::vector<BlockDigest> all(digests, digests + whole);
    all.push_back(memory::DigestBlock(end));
    return on_piece({slot.offset, slot.bytes, all});
  }

  const std::shared_ptr<const Device> device_;
  const Driver& driver_;
  std::optional<BlockDigester> digester_;
  std::array<Stream, kCopyStreams> copy_;
  std::array<Stream, kDigestStreams> digest_;
  std::array<Slot, kSlots> slots_;
};

}  // namespace

Result<std::unique_ptr<memory::CopyEngine>> DeviceCopyEngine(std::shared_ptr<const Device> device) {
  const Current current(*device);
  ROUSE_ASSIGN_OR_RETURN(BlockDigester digester, BlockDigester::Create(device->driver()));
  auto engine = std::make_unique<Engine>(std::move(device), std::move(digester));
  ROUSE_RETURN_IF_ERROR(engine->Prepare());
  return std::unique_ptr<memory::CopyEngine>(std::move(engine));
}

}  // namespace rouse::cuda
