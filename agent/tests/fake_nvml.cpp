// Stands in for libnvidia-ml.so.1: GPUs whose UUID begins with "GPU-". What "happens" to them is
// read from the file that ROUSE_FAKE_NVML names, line after line: "UUID XID", and XID 0 for a GPU
// that is lost.

#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <set>
#include <string>

namespace {

struct EventData {
  void* device;
  unsigned long long type;
  unsigned long long data;
  unsigned gpu_instance;
  unsigned compute_instance;
};

struct EventSet {
  std::set<void*> devices;
  std::streamoff read = 0;
};

constexpr int kSuccess = 0, kInvalidArgument = 2, kNotFound = 6, kTimeout = 10, kGpuIsLost = 15;
constexpr unsigned kStepMs = 5;

std::set<std::string>& Devices() {
  static std::set<std::string> devices;
  return devices;
}

void* DeviceOf(const std::string& uuid) {
  return const_cast<std::string*>(&*Devices().insert(uuid).first);
}

}  // namespace

extern "C" {

int nvmlInit_v2() {
  return kSuccess;
}

int nvmlShutdown() {
  return kSuccess;
}

const char* nvmlErrorString(int code) {
  return code == kNotFound ? "Not Found" : "Unknown Error";
}

int nvmlDeviceGetHandleByUUID(const char* uuid, void** device) {
  if (std::strncmp(uuid, "GPU-", 4) != 0) return kNotFound;
  *device = DeviceOf(uuid);
  return kSuccess;
}

int nvmlEventSetCreate(void** set) {
  *set = new EventSet;
  return kSuccess;
}

int nvmlEventSetFree(void* set) {
  delete static_cast<EventSet*>(set);
  return kSuccess;
}

int nvmlDeviceRegisterEvents(void* device, unsigned long long types, void* set) {
  if (types != 8) return kInvalidArgument;
  static_cast<EventSet*>(set)->devices.insert(device);
  return kSuccess;
}

int nvmlEventSetWait_v2(void* opaque, EventData* data, unsigned timeout_ms) {
  auto& set = *static_cast<EventSet*>(opaque);
  for (unsigned waited = 0; waited < timeout_ms; waited += kStepMs) {
    std::ifstream events(std::getenv("ROUSE_FAKE_NVML"));
    events.seekg(set.read);
    std::string uuid;
    unsigned long long xid = 0;
    if (events >> uuid >> xid) {
      set.read = events.tellg();
      void* const device = DeviceOf(uuid);
      if (!set.devices.contains(device)) continue;
      if (xid == 0) return kGpuIsLost;
      *data = {device, 8, xid, ~0u, ~0u};
      return kSuccess;
    }
    ::usleep(kStepMs * 1000);
  }
  return kTimeout;
}
}
