#include "agent/transfer/source_server.h"

#include <cstdio>
#include <map>
#include <string>
#include <utility>

#include "agent/transfer/host_context.h"
#include "agent/transfer/source_wire.h"
#include "agent/ucx/context.h"
#include "agent/ucx/worker.h"
#include "common/base64.h"
#include "common/log.h"

namespace rouse::transfer {
namespace {

class Server {
 public:
  Server(std::shared_ptr<ucx::Context> context, SlabMappings mappings)
      : context_(std::move(context)), mappings_(std::move(mappings)) {}

  Result<json::Json> Answer(const WireMessage& request) {
    json::Reader in(request.body, "request");
    if (in.Has("release")) {
      const std::string key = in.String("release");
      ROUSE_RETURN_IF_ERROR(in.status());
      // What was offered may still be read.
      if (!registered_.contains(key)) mappings_.Unmap(key);
      return json::Json::object();
    }
    const bool offer = in.Bool("offer");
    const auto bytes = static_cast<std::uint64_t>(in.Int("bytes", 1));
    ROUSE_RETURN_IF_ERROR(in.status());
    ROUSE_ASSIGN_OR_RETURN(const auto range, mappings_.Map(request.fd.get(), bytes));
    if (!offer) return json::Json::object();
    ROUSE_ASSIGN_OR_RETURN(const std::string key, SlabKey(request.fd.get()));
    auto known = registered_.find(key);
    if (known == registered_.end()) {
      ROUSE_ASSIGN_OR_RETURN(auto memory, ucx::RegisteredMemory::Register(context_, range));
      known = registered_.emplace(key, std::move(memory)).first;
    }
    ROUSE_ASSIGN_OR_RETURN(const std::string rkey, known->second.PackKey());
    char address[32];
    std::snprintf(address, sizeof(address), "0x%llx",
                  static_cast<unsigned long long>(known->second.address()));
    return json::Json{{"address", address}, {"rkey", Base64Encode(rkey)}};
  }

 private:
  std::shared_ptr<ucx::Context> context_;
  SlabMappings mappings_;
  std::map<std::string, ucx::RegisteredMemory> registered_;  // goes before what it registers
};

Status Serve(SlabMappings mappings, int socket) {
  ROUSE_ASSIGN_OR_RETURN(const HostContext host, CreateHostContext());
  ROUSE_ASSIGN_OR_RETURN(auto worker, ucx::Worker::Create(host.ucx));
  ROUSE_ASSIGN_OR_RETURN(const std::string address, worker->Address());
  ROUSE_RETURN_IF_ERROR(WireSend(socket, {{"workerAddress", Base64Encode(address)}}));
  Server server(host.ucx, std::move(mappings));  // before the thread that reads its slabs
  const ucx::ProgressThread progress(*worker, "ucx-source");
  for (;;) {
    ROUSE_ASSIGN_OR_RETURN(const auto request, WireReceive(socket));
    if (!request) return {};  // the agent is gone
    auto answer = server.Answer(*request);
    ROUSE_RETURN_IF_ERROR(WireSend(socket, answer.ok() ? *answer : WireError(answer.status())));
  }
}

}  // namespace

int ServeWeights(SlabMappings mappings, int socket) {
  const Status status = Serve(std::move(mappings), socket);
  if (status.ok()) return 0;
  log::Error("the weight source process ends", {{"error", status.ToString()}});
  // The agent may wait for an answer: it shall have the reason.
  static_cast<void>(WireSend(socket, WireError(status)).ok());
  return 1;
}

}  // namespace rouse::transfer
