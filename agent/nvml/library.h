// libnvidia-ml, opened at run time: the functions that Rouse calls, declared here. Private to
// agent/nvml.
//
// What is declared is NVML's stable interface (its functions of version 2 have been there since
// driver 450), so its header, which comes with the toolkit only, is not needed.

#pragma once

#include <string>
#include <string_view>

#include "common/result.h"

namespace rouse::nvml {

/// nvmlDevice_t and nvmlEventSet_t point to these.
struct Device;
struct EventSet;

/// nvmlReturn_t.
enum class Code : int {
  kSuccess = 0,
  kInvalidArgument = 2,
  kNotSupported = 3,
  kNoPermission = 4,
  kNotFound = 6,
  kTimeout = 10,
  kGpuIsLost = 15,
};

inline constexpr unsigned long long kXidEvent = 8;  ///< nvmlEventTypeXidCriticalError

/// nvmlEventData_t.
struct EventData {
  Device* device = nullptr;
  unsigned long long type = 0;
  unsigned long long data = 0;  ///< The Xid.
  unsigned gpu_instance = 0;
  unsigned compute_instance = 0;
};

struct Library {
  Code (*Init)() = nullptr;
  Code (*Shutdown)() = nullptr;
  const char* (*ErrorString)(Code) = nullptr;
  Code (*DeviceByUuid)(const char* uuid, Device**) = nullptr;
  Code (*EventSetCreate)(EventSet**) = nullptr;
  Code (*EventSetFree)(EventSet*) = nullptr;
  Code (*RegisterEvents)(Device*, unsigned long long types, EventSet*) = nullptr;
  Code (*EventSetWait)(EventSet*, EventData*, unsigned timeout_ms) = nullptr;

  /// Unavailable, with the reason, when there is none at `path` (a name is looked for as the
  /// dynamic linker does) or it lacks a function. It stays open for good.
  static Result<Library> Open(const std::string& path);
};

/// Ok, or what NVML says of `code`.
Status ToStatus(const Library& library, Code code, std::string_view what);

}  // namespace rouse::nvml
