#include "agent/ucx/endpoint.h"

#include <ucp/api/ucp.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "agent/ucx/status.h"
#include "common/log.h"

namespace rouse::ucx {
namespace {

// UCX parses addresses and keys without knowing where they end: what it reads past the end must be
// ours, and zero.
constexpr std::size_t kPadding = 64u << 10;
constexpr std::chrono::seconds kCloseDeadline{2};

std::vector<char> Padded(std::string_view bytes) {
  std::vector<char> buffer(bytes.size() + kPadding, '\0');
  std::memcpy(buffer.data(), bytes.data(), bytes.size());
  return buffer;
}

Status CheckLength(std::string_view bytes, std::size_t min, std::size_t max,
                   std::string_view what) {
  if (bytes.size() >= min && bytes.size() <= max) return {};
  return InvalidArgument(std::string(what) + " has " + std::to_string(bytes.size()) +
                         " bytes, expected " + std::to_string(min) + " to " + std::to_string(max));
}

// UCX aborts the process on an address of a version that it does not know (the low four bits of the
// first byte: 0 and 1 so far, or what this library makes itself).
Status CheckVersion(std::string_view address, std::string_view own) {
  constexpr unsigned kVersionMask = 0x0f;
  const unsigned version = static_cast<unsigned char>(address.front()) & kVersionMask;
  const unsigned known = static_cast<unsigned char>(own.front()) & kVersionMask;
  if (version <= std::max(known, 1u)) return {};
  return InvalidArgument("worker address has version " + std::to_string(version) + ", which UCX " +
                         LibraryVersion() + " does not know");
}

void OnError(void* argument, ucp_ep_h endpoint, ucs_status_t status) {
  static_cast<void>(endpoint);
  Status& first = *static_cast<Status*>(argument);
  if (first.ok())
    first = Unavailable(std::string("connection lost: UCX: ") + ucs_status_string(status));
}

}  // namespace

void RemoteKey::Destroy::operator()(ucp_rkey* key) const {
  ucp_rkey_destroy(key);
}

void GetRequest::Free::operator()(void* request) const {
  ucp_request_free(request);
}

std::optional<Status> GetRequest::Poll() {
  if (ended_) return ended_;
  const ucs_status_t status = ucp_request_check_status(request_.get());
  if (status == UCS_INPROGRESS) return std::nullopt;
  ended_ = ToStatus(status, "read from the peer");
  request_.reset();
  return ended_;
}

Result<std::unique_ptr<Endpoint>> Endpoint::Connect(Worker& worker, std::string_view address) {
  ROUSE_RETURN_IF_ERROR(CheckLength(address, kMinAddressBytes, kMaxAddressBytes, "worker address"));
  ROUSE_ASSIGN_OR_RETURN(const std::string own, worker.Address());
  ROUSE_RETURN_IF_ERROR(CheckVersion(address, own));
  const std::vector<char> padded = Padded(address);
  std::unique_ptr<Endpoint> endpoint(new Endpoint(worker, std::make_unique<Status>()));
  ucp_ep_params_t params = {};
  params.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                      UCP_EP_PARAM_FIELD_ERR_HANDLER;
  params.address = reinterpret_cast<const ucp_address_t*>(padded.data());
  params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
  params.err_handler.cb = &OnError;
  params.err_handler.arg = endpoint->status_.get();
  ROUSE_RETURN_IF_ERROR(ToStatus(ucp_ep_create(worker.handle(), &params, &endpoint->handle_),
                                 "connect to the peer's UCX worker"));
  return endpoint;
}

Endpoint::~Endpoint() {
  if (handle_ == nullptr) return;
  ucp_request_param_t params = {};
  params.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
  params.flags = UCP_EP_CLOSE_FLAG_FORCE;
  const ucs_status_ptr_t request = ucp_ep_close_nbx(handle_, &params);
  if (!UCS_PTR_IS_PTR(request)) return;
  const auto deadline = std::chrono::steady_clock::now() + kCloseDeadline;
  while (ucp_request_check_status(request) == UCS_INPROGRESS) {
    if (std::chrono::steady_clock::now() > deadline) {
      log::Error("ucx endpoint does not close", {{"seconds", kCloseDeadline.count()}});
      break;
    }
    worker_.Progress();
  }
  ucp_request_free(request);
}

Result<RemoteKey> Endpoint::OpenKey(std::string_view rkey) {
  ROUSE_RETURN_IF_ERROR(CheckLength(rkey, kMinKeyBytes, kMaxKeyBytes, "remote key"));
  const std::vector<char> padded = Padded(rkey);
  ucp_rkey_h handle = nullptr;
  ROUSE_RETURN_IF_ERROR(
      ToStatus(ucp_ep_rkey_unpack(handle_, padded.data(), &handle), "open the peer's remote key"));
  return RemoteKey(handle);
}

GetRequest Endpoint::Get(const GetArguments& arguments) {
  if (!status_->ok()) return GetRequest(*status_);
  ucp_request_param_t params = {};
  params.op_attr_mask = UCP_OP_ATTR_FIELD_MEMH;
  params.memh = arguments.memory->handle();
  const ucs_status_ptr_t request =
      ucp_get_nbx(handle_, arguments.into.data(), arguments.into.size(), arguments.from,
                  arguments.key->handle(), &params);
  if (UCS_PTR_IS_PTR(request)) return GetRequest(request);
  return GetRequest(ToStatus(UCS_PTR_RAW_STATUS(request), "start a read from the peer"));
}

std::string Endpoint::Transport() const {
  char* text = nullptr;
  std::size_t bytes = 0;
  std::FILE* stream = ::open_memstream(&text, &bytes);
  if (stream == nullptr) return "";
  ucp_ep_print_info(handle_, stream);
  std::fclose(stream);
  std::string transport = ParseTransport({text, bytes});
  std::free(text);
  return transport;
}

}  // namespace rouse::ucx
