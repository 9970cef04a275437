#include "agent/ucx/context.h"

#include <ucp/api/ucp.h>
#include <ucs/debug/log_def.h>

#include <algorithm>
#include <array>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include "agent/ucx/status.h"
#include "common/log.h"

namespace rouse::ucx {
namespace {

constexpr std::size_t kMaxRegionBytes = std::size_t{4} << 30;

struct Setting {
  const char*
      name;  // as ucp_config_modify takes it: a transport's own, without the transport's name
  const char* value;
  std::array<const char*, 3> variables;  // any of these set: the user has decided
};

constexpr Setting kSettings[] = {
    // With error handling by peer, which a pull cannot do without, UCX passes over shared memory
    // unless
    // it is told that it may handle errors there: 0.6 GB/s by TCP inside a machine instead of 3
    // to 5.
    {"MM_ERROR_HANDLING",
     "y",
     {"UCX_MM_ERROR_HANDLING", "UCX_POSIX_ERROR_HANDLING", "UCX_SYSV_ERROR_HANDLING"}},
    // TCP's: fewer, larger messages than with 8 KiB, a third faster. Must stay below the receive
    // buffer,
    // which is 64 KiB unless the peer's user has set it.
    {"TX_SEG_SIZE", "60K", {"UCX_TCP_TX_SEG_SIZE", "UCX_TX_SEG_SIZE", nullptr}},
    // A peer that vanished is noticed after some seconds instead of a minute. The pull has its own
    // deadline; this is what cleans up on the source's side.
    {"KEEPALIVE_INTERVAL", "1s", {"UCX_KEEPALIVE_INTERVAL", nullptr, nullptr}},
};

bool SetByUser(const Setting& setting) {
  return std::any_of(setting.variables.begin(), setting.variables.end(), [](const char* variable) {
    return variable != nullptr && std::getenv(variable) != nullptr;
  });
}

// UCX writes its log to standard output, where nobody expects it.
ucs_log_func_rc_t ForwardLog(const char* file, unsigned line, const char* function,
                             ucs_log_level_t level, const ucs_log_component_config_t* component,
                             const char* format, va_list arguments) {
  static_cast<void>(file), static_cast<void>(line), static_cast<void>(component);
  char text[1024];
  std::vsnprintf(text, sizeof(text), format, arguments);
  // Settings of transports that this context does not use: not worth a warning.
  const bool unused_setting = std::strcmp(function, "ucp_warn_unused_uct_config") == 0;
  if (level <= UCS_LOG_LEVEL_WARN && !unused_setting) {
    log::Warning("ucx",
                 {{"text", text}, {"function", function}, {"level", ucs_log_level_names[level]}});
  } else {
    log::Debug("ucx", {{"text", text}, {"function", function}});
  }
  // A fatal one goes on to UCX's own handler, which says where it was before it aborts.
  return level == UCS_LOG_LEVEL_FATAL ? UCS_LOG_FUNC_RC_CONTINUE : UCS_LOG_FUNC_RC_STOP;
}

void ForwardLogOnce() {
  static std::once_flag once;
  std::call_once(once, [] { ucs_log_push_handler(&ForwardLog); });
}

void Apply(ucp_config_t* config, const Setting& setting) {
  if (SetByUser(setting)) return;
  const ucs_status_t status = ucp_config_modify(config, setting.name, setting.value);
  if (status != UCS_OK) {
    log::Warning("ucx setting refused", {{"setting", setting.name},
                                         {"value", setting.value},
                                         {"version", LibraryVersion()},
                                         {"error", ucs_status_string(status)}});
  }
}

void Apply(ucp_config_t* config, const ContextOptions& options) {
  for (const Setting& setting : kSettings) Apply(config, setting);
  if (!options.net_devices.empty()) {
    std::string devices;
    for (const std::string& device : options.net_devices) {
      devices += (devices.empty() ? "" : ",") + device;
    }
    Apply(config, {"NET_DEVICES", devices.c_str(), {"UCX_NET_DEVICES", nullptr, nullptr}});
  }
  // One is what UCX does anyway.
  if (options.max_rails > 1) {
    Apply(config, {"MAX_RMA_RAILS",
                   std::to_string(options.max_rails).c_str(),
                   {"UCX_MAX_RMA_RAILS", nullptr, nullptr}});
  }
}

}  // namespace

std::string LibraryVersion() {
  return ucp_get_version_string();
}

Result<std::shared_ptr<Context>> Context::Create(const ContextOptions& options) {
  ForwardLogOnce();
  ucp_config_t* config = nullptr;
  ROUSE_RETURN_IF_ERROR(
      ToStatus(ucp_config_read(nullptr, nullptr, &config), "read UCX_* variables"));
  Apply(config, options);

  ucp_params_t params = {};
  params.field_mask =
      UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_MT_WORKERS_SHARED | UCP_PARAM_FIELD_NAME;
  params.features = UCP_FEATURE_RMA | UCP_FEATURE_WAKEUP;
  params.mt_workers_shared = 1;
  params.name = "rouse";
  ucp_context_h handle = nullptr;
  const ucs_status_t status = ucp_init(&params, config, &handle);
  ucp_config_release(config);
  if (status != UCS_OK) {
    return Unavailable(
        "start UCX " + LibraryVersion() + ": " + ucs_status_string(status) +
        "; see `ucx_info -d` for the devices it finds, and UCX_TLS, UCX_NET_DEVICES");
  }
  return std::shared_ptr<Context>(new Context(handle));
}

Context::~Context() {
  ucp_cleanup(handle_);
}

Result<RegisteredMemory> RegisteredMemory::Register(std::shared_ptr<Context> context,
                                                    std::span<std::byte> range) {
  const std::string what = "register " + std::to_string(range.size()) + " bytes with UCX";
  if (range.empty() || range.size() > kMaxRegionBytes) {
    return InvalidArgument(what + ": must be between 1 and " + std::to_string(kMaxRegionBytes));
  }
  ucp_mem_map_params_t params = {};
  params.field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH |
                      UCP_MEM_MAP_PARAM_FIELD_PROT;
  params.address = range.data();
  params.length = range.size();
  // A peer may read, never write.
  params.prot =
      UCP_MEM_MAP_PROT_LOCAL_READ | UCP_MEM_MAP_PROT_LOCAL_WRITE | UCP_MEM_MAP_PROT_REMOTE_READ;
  ucp_mem_h handle = nullptr;
  ROUSE_RETURN_IF_ERROR(ToStatus(ucp_mem_map(context->handle(), &params, &handle), what));
  return RegisteredMemory(Handle(handle, Unregister{std::move(context)}), range);
}

void RegisteredMemory::Unregister::operator()(ucp_mem* memory) const {
  ucp_mem_unmap(context->handle(), memory);
}

Result<std::string> RegisteredMemory::PackKey() const {
  void* buffer = nullptr;
  std::size_t bytes = 0;
  ROUSE_RETURN_IF_ERROR(ToStatus(
      ucp_rkey_pack(handle_.get_deleter().context->handle(), handle_.get(), &buffer, &bytes),
      "pack a remote key"));
  std::string key(static_cast<const char*>(buffer), bytes);
  ucp_rkey_buffer_release(buffer);
  return key;
}

}  // namespace rouse::ucx
