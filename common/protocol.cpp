#include "common/protocol.h"

#include <string>

namespace rouse {

json::Json Envelope(std::string_view protocol, int version) {
  return {{"protocol", protocol}, {"version", version}};
}

Status CheckProtocol(json::Reader& in, std::string_view protocol, int version) {
  const std::string theirs = in.String("protocol");
  const std::int64_t their_version = in.Int("version");
  ROUSE_RETURN_IF_ERROR(in.status());
  if (theirs == protocol && their_version == version) return Status();
  return FailedPrecondition("the other side speaks " + theirs.substr(0, 64) + " " +
                            std::to_string(their_version) + ", this side " + std::string(protocol) +
                            " " + std::to_string(version) + ": run the same release on both sides");
}

}  // namespace rouse
