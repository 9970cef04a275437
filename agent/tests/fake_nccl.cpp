#include "agent/tests/fake_nccl.h"

using rouse::nccl::Code;
using rouse::nccl::Config;
using rouse::nccl::FakeNccl;
using rouse::nccl::Handle;
using rouse::nccl::UniqueId;

namespace {

FakeNccl fake;
int communicator;

Code Begin(Code outcome) {
  fake.left = fake.polls;
  fake.outcome = outcome;
  return Code::kInProgress;
}

}  // namespace

extern "C" {

FakeNccl* FakeNcclState() {
  return &fake;
}

Code ncclGetVersion(int* version) {
  *version = fake.version;
  return Code::kSuccess;
}

Code ncclGetUniqueId(UniqueId* id) {
  *id = {};
  return Code::kSuccess;
}

Code ncclCommInitRankConfig(Handle* handle, int ranks, UniqueId id, int rank, Config* config) {
  if (config->size != sizeof(Config) || config->magic != 0xcafebeef) {
    return Code::kInvalidArgument;
  }
  fake.ranks = ranks;
  fake.rank = rank;
  fake.first_byte_of_id = id.bytes[0];
  fake.blocking = config->blocking;
  if (fake.init == Code::kInvalidUsage) return fake.init;  // refused at once, without a handle
  *handle = reinterpret_cast<Handle>(&communicator);
  return Begin(fake.init);
}

Code ncclCommGetAsyncError(Handle, Code* state) {
  *state = Code::kInProgress;
  if (fake.left > 0) --fake.left;
  if (fake.left == 0) *state = fake.outcome;
  return Code::kSuccess;
}

Code ncclCommFinalize(Handle) {
  return Begin(fake.finalize);
}

Code ncclCommDestroy(Handle) {
  ++fake.destroyed;
  return Code::kSuccess;
}

Code ncclCommAbort(Handle) {
  ++fake.aborted;
  return Code::kSuccess;
}

Code ncclBroadcast(const void* send, void* receive, std::size_t count, int type, int root, Handle,
                   void*) {
  if (send != receive || type != rouse::nccl::kUint8 || root != 0) return Code::kInvalidArgument;
  fake.sizes.push_back(count);
  return Begin(fake.broadcast);
}

const char* ncclGetErrorString(Code code) {
  return code == Code::kRemoteError ? "remote process exited" : "some error";
}

const char* ncclGetLastError(Handle) {
  return fake.last_error;
}
}
