// GPUs that fail, by a stand-in for NVML.

#include <stdlib.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <chrono>
#include <fstream>
#include <thread>

#include "agent/nvml/library.h"
#include "agent/nvml/xid_watch.h"
#include "common/tests/eventually.h"

namespace rouse {
extern const char kFakeNvml[];  ///< Where the build put it.
}

using namespace rouse;
using namespace rouse::nvml;

namespace {

/// What happens to GPUs, and what is heard of it.
class World {
 public:
  World() {
    char name[] = "/tmp/rouse-nvml-test-XXXXXX";
    ::close(::mkstemp(name));
    path_ = name;
    ::setenv("ROUSE_FAKE_NVML", name, 1);
  }
  ~World() { ::unlink(path_.c_str()); }

  void Happens(const std::string& gpu, int xid) const {
    std::ofstream(path_, std::ios::app) << gpu << " " << xid << "\n";
  }
  void Hear(const XidEvent& event) {
    const std::scoped_lock lock(mutex_);
    heard_.push_back(event.gpu + " " + std::to_string(event.xid));
  }
  std::vector<std::string> Heard(std::size_t count) const {
    test::Eventually([&] {
      const std::scoped_lock lock(mutex_);
      return heard_.size() >= count;
    });
    const std::scoped_lock lock(mutex_);
    return heard_;
  }

 private:
  std::string path_;
  mutable std::mutex mutex_;
  std::vector<std::string> heard_;
};

}  // namespace

TEST_CASE("What the driver reports of the GPUs that are watched is heard, and of no others") {
  World world;
  XidWatch watch(kFakeNvml, [&](const XidEvent& event) { world.Hear(event); });
  watch.Add("GPU-a");
  watch.Add("GPU-a");
  world.Happens("GPU-a", 79);
  CHECK(world.Heard(1) == std::vector<std::string>{"GPU-a 79"});
  world.Happens("GPU-b", 48);
  world.Happens("GPU-a", 13);
  CHECK(world.Heard(2) == std::vector<std::string>{"GPU-a 79", "GPU-a 13"});
  watch.Add("GPU-b");
  // It is registered within a wait of the watch's; what happens before that is not heard.
  for (int i = 0; i < 200 && world.Heard(2).size() < 3; ++i) {
    world.Happens("GPU-b", 94);
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  CHECK(world.Heard(3).back() == "GPU-b 94");
}

TEST_CASE("A GPU that is lost is heard of once") {
  World world;
  {
    XidWatch watch(kFakeNvml, [&](const XidEvent& event) { world.Hear(event); });
    watch.Add("GPU-a");
    world.Happens("GPU-a", 0);
    CHECK(world.Heard(1) == std::vector<std::string>{"GPU-a 0"});
    watch.Add("GPU-b");
    world.Happens("GPU-a", 48);
    world.Happens("GPU-b", 48);
    CHECK(world.Heard(2).back() == "GPU-b 48");
  }
  CHECK(world.Heard(2).size() == 2);
}

TEST_CASE("A GPU that NVML does not know, or no NVML, keeps nobody from anything") {
  World world;
  {
    XidWatch watch(kFakeNvml, [&](const XidEvent& event) { world.Hear(event); });
    watch.Add("MIG-1");
    watch.Add("GPU-a");
    world.Happens("GPU-a", 95);
    CHECK(world.Heard(1) == std::vector<std::string>{"GPU-a 95"});
  }
  XidWatch none("/nowhere/libnvidia-ml.so.1", [](const XidEvent&) {});
  none.Add("GPU-a");
  XidWatch never(kFakeNvml, [](const XidEvent&) {});
  CHECK(Library::Open("/nowhere/libnvidia-ml.so.1").status().code() == StatusCode::kUnavailable);
  CHECK(Library::Open("libc.so.6").status().message() ==
        "NVML is too old: libc.so.6 has no nvmlEventSetWait_v2");
}
