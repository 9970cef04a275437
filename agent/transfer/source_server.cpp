// The child's side of source_process.h.

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <string>
#include <vector>

#include "agent/transfer/host_context.h"
#include "agent/transfer/source_process.h"
#include "agent/transfer/source_wire.h"
#include "agent/ucx/context.h"
#include "agent/ucx/worker.h"
#include "common/base64.h"
#include "common/log.h"

namespace rouse::transfer {
namespace {

constexpr int kSocket = 3;

/// A slab as the child has it. Registered memory goes before its mapping.
class MappedSlab {
  struct Unmap {
    std::size_t bytes = 0;
    void operator()(std::byte* address) const { ::munmap(address, bytes); }
  };
  using Mapping = std::unique_ptr<std::byte, Unmap>;

 public:
  static Result<MappedSlab> Make(std::shared_ptr<ucx::Context> context, int fd,
                                 std::uint64_t bytes) {
    // RDMA devices of UCX 1.13 register only what is writable; a sealed slab can only be mapped to
    // be read.
    void* address = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (address == MAP_FAILED && errno == EPERM) {
      address = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, fd, 0);
    }
    if (address == MAP_FAILED) {
      return FromErrno(errno, "map a slab of " + std::to_string(bytes) + " bytes");
    }
    Mapping mapping(static_cast<std::byte*>(address), Unmap{bytes});
    ROUSE_ASSIGN_OR_RETURN(
        auto memory, ucx::RegisteredMemory::Register(std::move(context), {mapping.get(), bytes}));
    return MappedSlab(std::move(mapping), std::move(memory));
  }

  const ucx::RegisteredMemory& memory() const { return memory_; }

 private:
  MappedSlab(Mapping mapping, ucx::RegisteredMemory memory)
      : mapping_(std::move(mapping)), memory_(std::move(memory)) {}

  Mapping mapping_;
  ucx::RegisteredMemory memory_;
};

Result<json::Json> Answer(const std::shared_ptr<ucx::Context>& context, const WireMessage& request,
                          std::vector<MappedSlab>& slabs) {
  json::Reader in(request.body, "request");
  const auto bytes = static_cast<std::uint64_t>(in.Int("bytes", 1));
  ROUSE_RETURN_IF_ERROR(in.status());
  ROUSE_ASSIGN_OR_RETURN(auto slab, MappedSlab::Make(context, request.fd.get(), bytes));
  ROUSE_ASSIGN_OR_RETURN(const std::string rkey, slab.memory().PackKey());
  char address[32];
  std::snprintf(address, sizeof(address), "0x%llx",
                static_cast<unsigned long long>(slab.memory().address()));
  slabs.push_back(std::move(slab));
  return json::Json{{"address", address}, {"rkey", Base64Encode(rkey)}};
}

Status Serve() {
  ROUSE_ASSIGN_OR_RETURN(const HostContext host, CreateHostContext());
  const std::shared_ptr<ucx::Context>& context = host.ucx;
  ROUSE_ASSIGN_OR_RETURN(auto worker, ucx::Worker::Create(context));
  ROUSE_ASSIGN_OR_RETURN(const std::string address, worker->Address());
  ROUSE_RETURN_IF_ERROR(WireSend(kSocket, {{"workerAddress", Base64Encode(address)}}));
  std::vector<MappedSlab> slabs;  // before the thread that reads them
  const ucx::ProgressThread progress(*worker, "ucx-source");
  for (;;) {
    ROUSE_ASSIGN_OR_RETURN(const auto request, WireReceive(kSocket));
    if (!request) return {};  // the agent is gone
    auto answer = Answer(context, *request, slabs);
    ROUSE_RETURN_IF_ERROR(WireSend(kSocket, answer.ok() ? *answer : WireError(answer.status())));
  }
}

}  // namespace

int RunSourceProcess() {
  log::Init("rouse-weight-source", log::Level::kInfo);
  ::fcntl(kSocket, F_SETFD, FD_CLOEXEC);
  // UCX may abort this process (source_process.h); a core file would hold all the weights.
  const rlimit no_core = {.rlim_cur = 0, .rlim_max = 0};
  ::setrlimit(RLIMIT_CORE, &no_core);
  const Status status = Serve();
  if (status.ok()) return 0;
  log::Error("the weight source process ends", {{"error", status.ToString()}});
  // The parent may wait for an answer: it shall have the reason.
  static_cast<void>(WireSend(kSocket, WireError(status)).ok());
  return 1;
}

}  // namespace rouse::transfer
