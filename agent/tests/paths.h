// Where the build put what tests start and read. A test program has those that its CMakeLists.txt
// names (rouse_strings).

#pragma once

namespace rouse {

extern const char kAgentProgram[];
extern const char kTransferPeerProgram[];
extern const char kFakeNccl[];
extern const char kFakeNvmlFolder[];
extern const char kFuzzSeeds[];

}  // namespace rouse
