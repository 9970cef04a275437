#include "agent/cuda/gpus.h"

#include <map>
#include <mutex>
#include <string>

#include "agent/cuda/device.h"

namespace rouse::cuda {
namespace {

class DriversGpus final : public memory::Gpus {
 public:
  Status Check() override { return DeviceCount().status(); }

  Result<std::shared_ptr<const memory::Memory>> MemoryOf(const std::string& uuid) override {
    const std::lock_guard lock(mutex_);
    if (const auto known = opened_.find(uuid); known != opened_.end()) return known->second;
    ROUSE_ASSIGN_OR_RETURN(auto device, Device::Open(uuid));
    return opened_.emplace(uuid, DeviceMemory(std::move(device))).first->second;
  }

 private:
  std::mutex mutex_;
  std::map<std::string, std::shared_ptr<const memory::Memory>> opened_;  // by UUID
};

}  // namespace

std::shared_ptr<memory::Gpus> Gpus() {
  return std::make_shared<DriversGpus>();
}

}  // namespace rouse::cuda
